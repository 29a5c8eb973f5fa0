"""`python -m growclip_ds` is `growclip`."""

import sys

from growclip_ds.cli.program import main

sys.exit(main())
