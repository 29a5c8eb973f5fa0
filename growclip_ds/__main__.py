"""`python -m growclip_ds` is `growclip`."""

import sys

from growclip_ds.cli import main

sys.exit(main())
