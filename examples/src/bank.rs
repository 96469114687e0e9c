//! A bank: accounts, and transfers between them that happen once, whatever fails on the way.
//!
//! ```text
//!   caller --order--> transfer "north/t-7"
//!          --run----> transfer "north/t-7" --withdraw--> account "north/1"
//!                                          --deposit---> account "south/4"
//! ```
//!
//! Accounts never call anybody, so no call cycle exists. A transfer's two steps carry idempotency
//! keys made of the transfer's own name: a transfer that runs again, on another node or after a
//! crash, repeats neither. Its terms are committed by a turn of their own, before the first step:
//! what a turn changes is lost when it is cut, and what it asked of others is not. Accounts and
//! transfers of one branch share a shard.

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
    /// The transfer was ordered with other accounts or another sum, and those hold.
    OtherTerms,
    /// The transfer was never ordered. Nothing was moved.
    NotOrdered,
}

impl fmt::Display for BankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { cents } => write!(f, "the account holds only {cents} cents"),
            Self::Full => f.write_str("the account cannot hold that much"),
            Self::SameAccount => f.write_str("a transfer needs two accounts"),
            Self::NoAccount => f.write_str("the account's name is not valid"),
            Self::OtherTerms => f.write_str("the transfer was ordered on other terms"),
            Self::NotOrdered => f.write_str("the transfer was never ordered"),
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

/// One transfer: what was ordered, and whether it was done.
#[state(version = 1)]
pub struct Transfer {
    terms: Option<Moved>,
    done: bool,
}

/// Money that goes from one account to another.
#[data]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The account that it leaves.
    pub from: String,
    /// The account that it reaches.
    pub to: String,
    /// How much.
    pub cents: u64,
}

/// The pause before a step is tried again whose outcome is not known.
const PAUSE: Duration = Duration::from_millis(50);

#[entity(name = "transfer", group_by = Self::branch)]
impl Transfer {
    /// Settles the terms, once and for all; nothing is moved yet.
    #[command]
    fn order(&mut self, from: String, to: String, cents: u64) -> Result<(), BankError> {
        if from == to {
            return Err(BankError::SameAccount);
        }
        let terms = Moved { from, to, cents };
        if *self.terms.get_or_insert_with(|| terms.clone()) == terms {
            Ok(())
        } else {
            Err(BankError::OtherTerms)
        }
    }

    /// Moves the money that was ordered, once for this transfer, however often it is called.
    #[command]
    async fn run(&mut self, cx: &mut Cx<'_>) -> Result<Moved, BankError> {
        let terms = self.terms.clone().ok_or(BankError::NotOrdered)?;
        if self.done {
            return Ok(terms);
        }
        step(cx, &terms.from, Step::Withdraw, terms.cents).await?;
        if let Err(refused) = step(cx, &terms.to, Step::Deposit, terms.cents).await {
            step(cx, &terms.from, Step::GiveBack, terms.cents).await?;
            return Err(refused);
        }
        self.done = true;
        Ok(terms)
    }

    /// What was moved, if it was.
    #[query]
    fn outcome(&self) -> Option<Moved> {
        self.terms.clone().filter(|_| self.done)
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
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
