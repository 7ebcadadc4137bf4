//! Share groups: one ephemeral pool that several domains joined.

use std::sync::Arc;

use crate::account::ledger::Account;
use crate::error::CreatePoolError;
use crate::pool::{MOST_MEMBERS, Pool};
use crate::sync::Mutex;

/// A share group and its pool. It lives while a domain has joined it.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) pool: Arc<Pool>,
    pub(crate) account: Arc<Account>,
    /// Held while members are added and removed.
    members_lock: Mutex<()>,
}

impl Group {
    pub(crate) fn new(pool: Pool, account: Arc<Account>) -> Self {
        Self {
            pool: Arc::new(pool),
            account,
            members_lock: Mutex::new(()),
        }
    }

    /// Adds a member. Returns its index.
    pub(crate) fn join(&self, account: &Arc<Account>) -> Result<u8, CreatePoolError> {
        let _lock = self.members_lock.lock();
        let mut members = self.pool.members();
        let index = match members.iter().position(Option::is_none) {
            Some(index) => index,
            None if members.len() < MOST_MEMBERS => {
                members.push(None);
                members.len() - 1
            }
            None => return Err(CreatePoolError::TooMany),
        };
        let member = u8::try_from(index).map_err(|_| CreatePoolError::TooMany)?;
        members[index] = Some(Arc::clone(account));
        self.pool.set_members(members);
        self.pool.admit(member, true);
        Ok(member)
    }

    /// A member leaves: none of its pages comes or is found from now on. They are charged to it until
    /// [`Pool::evict_member`] has evicted them, and [`Group::forget`] makes its index free.
    pub(crate) fn leave(&self, member: u8) {
        self.pool.admit(member, false);
    }

    /// Makes the index of a member free, of whom there is no page.
    pub(crate) fn forget(&self, member: u8) {
        let _lock = self.members_lock.lock();
        let mut members = self.pool.members();
        if let Some(index) = members.get_mut(usize::from(member)) {
            *index = None;
        }
        self.pool.set_members(members);
    }
}
