//! The names that operators give to guests and share groups.

/// Longest name of a guest, in bytes.
pub const MAX_GUEST_NAME: usize = 64;

/// Whether a guest can have this name: 1 to [`MAX_GUEST_NAME`] letters, digits, `.`, `_` and `-`, so that it needs no escapes in a path,
/// a log or a metric.
pub fn is_guest_name(text: &str) -> bool {
    is_name(text, MAX_GUEST_NAME)
}

/// Whether the text is 1 to `longest` of the characters that a name may have.
pub fn is_name(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_need_no_escapes() {
        for name in ["a", "vm-1", "A.b_c-9", &"x".repeat(64)] {
            assert!(is_guest_name(name), "{name}");
        }
        for name in ["", "a/b", "a b", "a%20b", "ä", "a\n", &"x".repeat(65)] {
            assert!(!is_guest_name(name), "{name}");
        }
        assert!(is_name("abc", 3) && !is_name("abcd", 3));
    }
}
