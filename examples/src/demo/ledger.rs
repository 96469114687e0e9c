//! What the clients were told: the transfers and readings that the audit must find again.

/// Branches of the bank.
pub const BRANCHES: u32 = 16;
/// Accounts of each branch.
pub const ACCOUNTS_PER_BRANCH: u32 = 12;
/// Accounts in all.
pub const ACCOUNTS: u32 = BRANCHES * ACCOUNTS_PER_BRANCH;
/// What each account begins with, in cents.
pub const OPENING_CENTS: u64 = 100_000;
/// Devices.
pub const DEVICES: u32 = 200;

/// The key of an account.
pub fn account_key(account: u32) -> String {
    format!("branch-{}/{}", account / ACCOUNTS_PER_BRANCH, account % ACCOUNTS_PER_BRANCH)
}

/// The key of a device.
pub fn device_key(device: u32) -> String {
    format!("device-{device}")
}

/// A transfer that a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The client; with `number` it names the transfer.
    pub client: u32,
    /// Counts from 0 in each client.
    pub number: u32,
    /// The account that pays.
    pub from: u32,
    /// The account that is paid.
    pub to: u32,
    /// How much.
    pub cents: u64,
}

impl Order {
    /// The key of the transfer: in the branch of the account that pays.
    pub fn key(&self) -> String {
        let branch = self.from / ACCOUNTS_PER_BRANCH;
        format!("branch-{branch}/t-{}-{}", self.client, self.number)
    }
}

/// What one client was told.
#[derive(Debug, Default)]
pub struct Book {
    /// Transfers that were made.
    pub moved: Vec<Order>,
    /// Transfers that the bank refused.
    pub refused: Vec<Order>,
    /// For each of the client's devices the readings that were taken.
    pub readings: Vec<Readings>,
    /// Calls without a definite outcome when the client had to stop, and the last answer.
    pub unsettled: Vec<String>,
    /// Answers that no call should get.
    pub wrong: Vec<String>,
}

/// What one device sent. Its readings are numbered from 1; all up to `acknowledged` were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readings {
    /// The device.
    pub device: u32,
    /// Readings taken.
    pub acknowledged: u64,
    /// Their sum.
    pub sum: i64,
    /// The last one.
    pub latest: i64,
}

/// What an account must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Its balance.
    pub cents: u64,
    /// How often it was changed.
    pub moves: u64,
}

impl Book {
    /// Adds what another client was told.
    pub fn merge(&mut self, other: Self) {
        self.moved.extend(other.moved);
        self.refused.extend(other.refused);
        self.readings.extend(other.readings);
        self.unsettled.extend(other.unsettled);
        self.wrong.extend(other.wrong);
    }

    /// Writes that were acknowledged: openings, transfers (each is written in three places),
    /// refusals, readings.
    pub fn acknowledged(&self) -> u64 {
        let transfers = 3 * self.moved.len() as u64 + self.refused.len() as u64;
        let readings: u64 = self.readings.iter().map(|readings| readings.acknowledged).sum();
        u64::from(ACCOUNTS) + transfers + readings
    }

    /// What every account must hold, in order.
    ///
    /// # Panics
    /// When more went out of an account than was ever in it: the bank refuses that.
    pub fn expected(&self) -> Vec<Expected> {
        let mut cents = vec![i128::from(OPENING_CENTS); ACCOUNTS as usize];
        let mut moves = vec![1; ACCOUNTS as usize];
        for order in &self.moved {
            cents[order.from as usize] -= i128::from(order.cents);
            cents[order.to as usize] += i128::from(order.cents);
            moves[order.from as usize] += 1;
            moves[order.to as usize] += 1;
        }
        let cents = cents.into_iter().map(|cents| u64::try_from(cents).expect("never overdrawn"));
        cents.zip(moves).map(|(cents, moves)| Expected { cents, moves }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_balances_keep_the_sum_and_count_both_ends() {
        let order = Order { client: 1, number: 7, from: 0, to: 13, cents: 250 };
        assert_eq!(order.key(), "branch-0/t-1-7");
        let mut book = Book::default();
        book.merge(Book { moved: vec![order], ..Book::default() });
        let expected = book.expected();
        assert_eq!(expected[0], Expected { cents: OPENING_CENTS - 250, moves: 2 });
        assert_eq!(expected[13], Expected { cents: OPENING_CENTS + 250, moves: 2 });
        let sum: u64 = expected.iter().map(|account| account.cents).sum();
        assert_eq!(sum, OPENING_CENTS * u64::from(ACCOUNTS));
    }
}
