//! Errors for people.

use std::error::Error;
use std::fmt::Write as _;

/// An error and its causes, on one line.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Cannot begin")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("no\nfile")]
    struct Inner;

    #[test]
    fn causes_follow_on_the_same_line() {
        assert_eq!(one_line(&Outer(Inner)), "Cannot begin: no file");
    }
}
