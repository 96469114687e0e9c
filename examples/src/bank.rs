//! A bank: accounts, and transfers between them that happen once, whatever fails on the way.
//!
//! ```text
//!   caller --run--> transfer "north/t-7" --withdraw--> account "north/1"
//!                                        --deposit---> account "south/4"
//! ```
//!
//! Accounts never call anybody, so no call cycle exists. A transfer's two steps carry idempotency
//! keys made of the transfer's own name: a transfer that runs again, on another node or after a
//! crash, repeats neither. Accounts and transfers of one branch share a shard.

use std::fmt;
use std::time::Duration;

use mainstay::prelude::*;

/// An account, in cents.
#[state(version = 1)]
pub struct Account {
    cents: u64,
    moves: u64,
}

/// What an account holds, and how often it was changed.
#[data]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// Its balance.
    pub cents: u64,
    /// Deposits and withdrawals so far.
    pub moves: u64,
}

/// Why the bank refuses.
#[data]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BankError {
    /// There is less in the account than asked for. Nothing was moved.
    Short {
        /// What there is, in cents.
        cents: u64,
    },
    /// The account cannot hold that much. Nothing was moved.
    Full,
    /// A transfer needs two accounts. Nothing was moved.
    SameAccount,
    /// The account's name is not valid. Nothing was moved.
    NoAccount,
    /// The transfer was begun with other accounts or another sum, and those hold.
    OtherTerms,
}

impl fmt::Display for BankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { cents } => write!(f, "the account holds only {cents} cents"),
            Self::Full => f.write_str("the account cannot hold that much"),
            Self::SameAccount => f.write_str("a transfer needs two accounts"),
            Self::NoAccount => f.write_str("the account's name is not valid"),
            Self::OtherTerms => f.write_str("the transfer was begun on other terms"),
        }
    }
}

#[entity(name = "account", group_by = Self::branch)]
impl Account {
    /// Puts money in, and returns the balance.
    #[command]
    fn deposit(&mut self, cents: u64) -> Result<u64, BankError> {
        self.cents = self.cents.checked_add(cents).ok_or(BankError::Full)?;
        self.moves += 1;
        Ok(self.cents)
    }

    /// Takes money out, and returns the balance.
    #[command]
    fn withdraw(&mut self, cents: u64) -> Result<u64, BankError> {
        let left = self.cents.checked_sub(cents).ok_or(BankError::Short { cents: self.cents })?;
        self.cents = left;
        self.moves += 1;
        Ok(left)
    }

    /// The balance, in cents.
    #[query]
    fn balance(&self) -> u64 {
        self.cents
    }

    /// The balance, and how often it was changed.
    #[query]
    fn statement(&self) -> Statement {
        Statement { cents: self.cents, moves: self.moves }
    }

    fn branch(key: &Key) -> &str {
        key.prefix('/')
    }
}

/// One transfer: what was moved, once it was.
#[state(version = 1)]
pub struct Transfer {
    moved: Option<Moved>,
}

/// Money that went from one account to another.
#[data]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The account that it left.
    pub from: String,
    /// The account that it reached.
    pub to: String,
    /// How much.
    pub cents: u64,
}

/// The pause before a step is tried again whose outcome is not known.
const PAUSE: Duration = Duration::from_millis(50);

#[entity(name = "transfer", group_by = Self::branch)]
impl Transfer {
    /// Moves money, once for this transfer, however often it is called.
    #[command]
    async fn run(
        &mut self,
        cx: &mut Cx<'_>,
        from: String,
        to: String,
        cents: u64,
    ) -> Result<Moved, BankError> {
        if let Some(moved) = &self.moved {
            return Ok(moved.clone());
        }
        if from == to {
            return Err(BankError::SameAccount);
        }
        step(cx, &from, Step::Withdraw, cents).await?;
        if let Err(refused) = step(cx, &to, Step::Deposit, cents).await {
            step(cx, &from, Step::GiveBack, cents).await?;
            return Err(refused);
        }
        let moved = Moved { from, to, cents };
        self.moved = Some(moved.clone());
        Ok(moved)
    }

    /// What was moved, if it was.
    #[query]
    fn outcome(&self) -> Option<Moved> {
        self.moved.clone()
    }

    fn branch(key: &Key) -> &str {
        key.prefix('/')
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Withdraw,
    Deposit,
    GiveBack,
}

/// Takes one step until its outcome is known. Money that has left one account must reach the
/// other, so nothing but an answer of the account ends this; the turn's own time limit does, and
/// then the transfer runs again from the start and finds its steps taken.
async fn step(cx: &Cx<'_>, account: &str, step: Step, cents: u64) -> Result<u64, BankError> {
    let key = format!("{}#{step:?}", cx.key());
    let account = cx.get::<Account>(account);
    loop {
        let call = match step {
            Step::Withdraw => account.withdraw(cents).key(&key).await,
            Step::Deposit | Step::GiveBack => account.deposit(cents).key(&key).await,
        };
        match call {
            Ok(done) => return Ok(done.value),
            Err(CallError::App(refused)) => return Err(refused),
            Err(CallError::Malformed { .. }) => return Err(BankError::NoAccount),
            Err(CallError::KeyConflict) => return Err(BankError::OtherTerms),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
