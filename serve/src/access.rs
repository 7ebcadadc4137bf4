//! Who can connect to a socket that the service makes: its mode and group.

use std::path::Path;

use crate::keys::Value;
use crate::regular;

/// The groups of this machine.
const GROUPS: &str = "/etc/group";

/// The values of a key for a mode.
pub(crate) const MODE: &str =
    "a mode in octal, from \"0600\" to \"0777\", that lets the owner read and write";
/// The values of a key for a group.
pub(crate) const GROUP: &str = "the name of a group in /etc/group, or its number";

/// Not a mode, or not a group, and what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not {1}")]
pub struct AccessError(String, &'static str);

/// Mode and group of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Permission bits. Who may write may connect.
    pub mode: u32,
    /// Number of the group; `None` is that of the process.
    pub group: Option<u32>,
}

impl Default for Access {
    fn default() -> Self {
        Self::new(None, None)
    }
}

impl Access {
    /// Without a mode, the group may connect if one is given, and otherwise only the user of the process.
    pub fn new(mode: Option<u32>, group: Option<u32>) -> Self {
        let usual = if group.is_some() { 0o660 } else { 0o600 };
        Self {
            mode: mode.unwrap_or(usual),
            group,
        }
    }

    /// Reads a mode of the command line.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn parse_mode(text: &str) -> Result<u32, AccessError> {
        mode(Value::Word(text)).ok_or_else(|| AccessError(text.to_owned(), MODE))
    }

    /// Reads a group of the command line.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn parse_group(text: &str) -> Result<u32, AccessError> {
        group(Value::Word(text)).ok_or_else(|| AccessError(text.to_owned(), GROUP))
    }

    /// Whether a socket can have this mode: the owner can use it, and there are permission bits only.
    pub fn is_mode(mode: u32) -> bool {
        mode & !0o777 == 0 && mode & 0o600 == 0o600
    }

    /// Whether a group can have this number: the last one means "as it is" to the kernel.
    pub fn is_group(group: u32) -> bool {
        group != u32::MAX
    }
}

/// The mode in a configuration.
pub(crate) fn mode(value: Value<'_>) -> Option<u32> {
    value.octal().filter(|mode| Access::is_mode(*mode))
}

/// The number of the group in a configuration.
pub(crate) fn group(value: Value<'_>) -> Option<u32> {
    let number = value.number(&(0..=u32::MAX));
    number
        .or_else(|| {
            let name = value.text()?;
            match name.parse() {
                Ok(number) => Some(number),
                Err(_) => number_of(name, &regular::read(Path::new(GROUPS)).ok()?),
            }
        })
        .filter(|group| Access::is_group(*group))
}

/// The number of the group `name` in a file of the form of group(5).
fn number_of(name: &str, groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (!name.is_empty() && fields.next()? == name)
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_name_or_number() {
        let file = "root:x:0:\nkvm:x:36:a,b\nbad\nworse:x:\nbig:x:4294967295:\n";
        assert_eq!(number_of("root", file), Some(0));
        assert_eq!(number_of("kvm", file), Some(36));
        for name in ["kv", "bad", "worse", "", "x", "a"] {
            assert_eq!(number_of(name, file), None, "{name}");
        }
        assert_eq!(group(Value::Word("36")), Some(36));
        assert_eq!(group(Value::Word("4294967295")), None);
        assert_eq!(group(Value::Word("-1")), None);
        assert_eq!(group(Value::Word("root")), Some(0));
        assert_eq!(group(Value::Word("no such group")), None);
    }

    #[test]
    fn a_mode_is_octal_and_has_permission_bits_only() {
        for (text, expected) in [
            ("0660", Some(0o660)),
            ("660", Some(0o660)),
            ("0o666", Some(0o666)),
            ("0600", Some(0o600)),
            ("0777", Some(0o777)),
            ("0400", None),
            ("02660", None),
            ("888", None),
            ("-660", None),
            ("+660", None),
            ("", None),
            ("rw-rw----", None),
        ] {
            assert_eq!(mode(Value::Word(text)), expected, "{text}");
        }
    }

    #[test]
    fn who_names_a_group_lets_it_in() {
        assert_eq!(Access::default().mode, 0o600);
        assert_eq!(Access::new(None, Some(36)).mode, 0o660);
        assert_eq!(Access::new(Some(0o600), Some(36)).mode, 0o600);
    }
}
