from tests.kernels import interpreter  # noqa: F401 (repairs bfloat16 where kernels are interpreted)
