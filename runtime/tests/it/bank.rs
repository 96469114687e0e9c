//! The entities that the tests speak to, as a user would write them.

use std::collections::BTreeMap;
use std::fmt;

use mainstay::prelude::*;

/// What a bank says no with.
#[data]
pub(crate) enum BankError {
    /// There is not enough on the account.
    Insufficient {
        cents: i64,
    },
    Closed,
}

impl fmt::Display for BankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insufficient { cents } => write!(f, "only {cents} cents are left"),
            Self::Closed => f.write_str("the account is closed"),
        }
    }
}

#[data]
pub(crate) struct Statement {
    pub(crate) owner: Option<String>,
    pub(crate) cents: i64,
    pub(crate) small: u8,
    pub(crate) ratio: f32,
}

/// An account as it was stored at first.
#[state(version = 1)]
pub(crate) struct AccountV1 {
    pub(crate) cents: i64,
}

#[state(version = 2, from = AccountV1)]
pub(crate) struct Account {
    pub(crate) cents: i64,
    #[serde(default)]
    pub(crate) owner: Option<String>,
    #[serde(default)]
    pub(crate) holds: BTreeMap<u64, i64>,
}

impl Migrate<AccountV1> for Account {
    fn migrate(old: AccountV1) -> Self {
        Self { cents: old.cents, owner: Some("migrated".to_owned()), holds: BTreeMap::new() }
    }
}

type Amount = u32;

/// A bank account.
///
/// It holds money.
#[entity(
    name = "account", group_by = Self::tenant, mailbox = 8, idle = "90s", turn = "2s"
)]
impl Account {
    /// Adds money,
    /// and gives the balance.
    ///
    /// # Errors
    /// None yet.
    #[command]
    fn deposit(&mut self, cents: Amount) -> Result<i64, BankError> {
        self.cents += i64::from(cents);
        Ok(self.cents)
    }

    /// Takes money, but changes the state before it looks.
    #[command(deadline = "200ms")]
    fn withdraw(&mut self, cents: u32, #[serde(default)] note: String) -> Result<i64, BankError> {
        let left = self.cents;
        self.cents -= i64::from(cents);
        self.owner = Some(note);
        if self.cents < 0 {
            return Err(BankError::Insufficient { cents: left });
        }
        Ok(self.cents)
    }

    #[command]
    async fn transfer(
        &mut self,
        cx: &mut Cx<'_>,
        to: String,
        cents: u32,
    ) -> Result<i64, BankError> {
        let there = cx.get::<Self>(&to).deposit(cents).key("t").await;
        let Ok(there) = there else { return Err(BankError::Closed) };
        self.cents -= i64::from(cents);
        Ok(there.value)
    }

    #[command(blocking)]
    fn audit(&mut self, _cx: &mut Cx<'_>) -> String {
        std::thread::current().name().unwrap_or("unnamed").to_owned()
    }

    #[command]
    fn close(&mut self) {
        assert!(self.cents == 0, "there is money left");
    }

    #[command]
    fn fill(&mut self, bytes: u32) -> String {
        "x".repeat(bytes as usize)
    }

    #[query]
    fn balance(&self) -> i64 {
        self.cents
    }

    #[query]
    fn statement(&self, cx: &Cx<'_>, detailed: Option<bool>) -> Result<Statement, BankError> {
        if detailed == Some(false) {
            return Err(BankError::Closed);
        }
        let owner = Some(format!("{}: {:?}", cx.key(), self.owner));
        Ok(Statement { owner, cents: self.cents, small: 7, ratio: 0.5 })
    }

    #[query]
    fn r#type(&self) -> Vec<(u64, Self)> {
        Vec::new()
    }

    #[cfg(test)]
    #[query]
    fn only_in_tests(&self) {}

    #[cfg(not(test))]
    #[query]
    fn never_in_tests(&self) -> NoSuchType {}

    fn tenant(key: &Key) -> &str {
        key.prefix('/')
    }
}

/// The smallest entity: it takes all defaults.
#[state(version = 1)]
pub(crate) struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    #[command]
    fn add(&mut self, by: i64) -> i64 {
        self.value += by;
        self.value
    }

    #[query]
    fn get(&self) -> i64 {
        self.value
    }
}
