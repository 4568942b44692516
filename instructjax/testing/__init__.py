"""Tools for testing losses: Hypothesis strategies for their inputs, and laws that every loss must satisfy."""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "instructjax.testing: expected the package hypothesis, found none; install it with: "
        "pip install 'instructjax[test]'",
        name="hypothesis",
    ) from error
