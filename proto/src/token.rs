//! Claims of the bearer token and their verification.
