"""Which replica answers: model -> deployment -> healthy replica."""
