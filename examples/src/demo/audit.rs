//! The audit: what the entities hold now, against what the clients were told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use mainstay_cluster_tests::processes::{Question, ask};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::ledger::{ACCOUNTS, Book, Expected, OPENING_CENTS, Order, account_key, device_key};
use crate::bank::{Moved, Statement};
use crate::devices::Summary;

/// Questions under way at one time.
const AT_ONCE: usize = 32;
/// How long one question is repeated.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the audit found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Of those, what was found again.
    pub present: u64,
    /// Changes that were applied more often than they were acknowledged.
    pub duplicates: u64,
    /// What all accounts hold together, in cents.
    pub cents: u64,
    /// What they must hold together, in cents.
    pub cents_expected: u64,
    /// Every single difference, in words.
    pub differences: Vec<String>,
    /// Calls that never got a definite outcome.
    pub unsettled: Vec<String>,
}

impl Findings {
    /// Nothing lost, nothing applied twice, nothing unknown.
    pub fn clean(&self) -> bool {
        self.present == self.acknowledged
            && self.duplicates == 0
            && self.cents == self.cents_expected
            && self.differences.is_empty()
            && self.unsettled.is_empty()
    }

    fn differs(&mut self, what: String) {
        self.differences.push(what);
    }
}

/// Asks the cluster for everything that the book says, and compares.
///
/// # Errors
/// When an entity cannot be asked.
pub async fn audit(inspector: &Inspector, book: &Book) -> Result<Findings> {
    let mut findings = Findings {
        acknowledged: book.acknowledged(),
        cents_expected: OPENING_CENTS * u64::from(ACCOUNTS),
        unsettled: book.unsettled.clone(),
        differences: book.wrong.clone(),
        ..Findings::default()
    };
    inspector.accounts(&book.expected(), &mut findings).await?;
    inspector.transfers(book, &mut findings).await?;
    inspector.devices(book, &mut findings).await?;
    Ok(findings)
}

/// Asks queries over HTTP, node after node, until one answers.
#[derive(Debug, Clone)]
pub struct Inspector {
    /// The client.
    pub client: reqwest::Client,
    /// The nodes' HTTP addresses.
    pub nodes: Vec<SocketAddr>,
}

impl Inspector {
    async fn accounts(&self, expected: &[Expected], findings: &mut Findings) -> Result<()> {
        let questions = (0..ACCOUNTS).map(|account| ("account", account_key(account), "statement"));
        let mut statements = self.ask_all::<Statement, _>(questions);
        let mut at = 0;
        while let Some(statement) = statements.next().await {
            let (key, found) = statement?;
            let wanted = expected[at];
            at += 1;
            findings.cents += found.cents;
            findings.present += found.moves.min(wanted.moves);
            findings.duplicates += found.moves.saturating_sub(wanted.moves);
            if (found.cents, found.moves) != (wanted.cents, wanted.moves) {
                findings.differs(format!("account {key}: {found:?}, expected {wanted:?}"));
            }
        }
        Ok(())
    }

    async fn transfers(&self, book: &Book, findings: &mut Findings) -> Result<()> {
        let question = |order: &Order| ("transfer", order.key(), "outcome");
        let mut outcomes = self.ask_all::<Option<Moved>, _>(book.moved.iter().map(question));
        let mut orders = book.moved.iter();
        while let Some(outcome) = outcomes.next().await {
            let (key, found) = outcome?;
            let order = orders.next().context("more answers than questions")?;
            let wanted = Moved {
                from: account_key(order.from),
                to: account_key(order.to),
                cents: order.cents,
            };
            if found.as_ref() == Some(&wanted) {
                findings.present += 1;
            } else {
                findings.differs(format!("transfer {key}: {found:?}, acknowledged {wanted:?}"));
            }
        }
        drop(outcomes);
        let mut outcomes = self.ask_all::<Option<Moved>, _>(book.refused.iter().map(question));
        while let Some(outcome) = outcomes.next().await {
            match outcome? {
                (_, None) => findings.present += 1,
                (key, Some(moved)) => {
                    findings.duplicates += 1;
                    findings.differs(format!("transfer {key} was refused, but holds {moved:?}"));
                }
            }
        }
        Ok(())
    }

    async fn devices(&self, book: &Book, findings: &mut Findings) -> Result<()> {
        let questions = book.readings.iter().map(|r| ("device", device_key(r.device), "summary"));
        let mut summaries = self.ask_all::<Option<Summary>, _>(questions);
        let mut readings = book.readings.iter();
        while let Some(summary) = summaries.next().await {
            let (key, found) = summary?;
            let wanted = readings.next().context("more answers than questions")?;
            let (count, last_seq, latest) =
                found.map_or((0, 0, 0), |found| (found.count, found.last_seq, found.latest));
            findings.present += count.min(wanted.acknowledged);
            findings.duplicates += count.saturating_sub(wanted.acknowledged);
            let mean = found.map(|found| found.mean_milli);
            let mean_wanted = mean_milli(wanted.sum, wanted.acknowledged);
            let acknowledged = wanted.acknowledged;
            if (count, last_seq, latest) != (acknowledged, acknowledged, wanted.latest)
                || mean != mean_wanted
            {
                findings.differs(format!("device {key}: {found:?}, acknowledged {wanted:?}"));
            }
        }
        Ok(())
    }

    /// Answers in the order of the questions, with the entity's key.
    fn ask_all<'a, T, Q>(&'a self, questions: Q) -> BoxStream<'a, Result<(String, T)>>
    where
        T: DeserializeOwned + Send + 'a,
        Q: Iterator<Item = (&'static str, String, &'static str)> + Send + 'a,
    {
        stream::iter(questions)
            .map(move |(kind, key, method)| async move {
                let value = self.ask(kind, &key, method).await?;
                Ok((key, value))
            })
            .buffered(AT_ONCE)
            .boxed()
    }

    async fn ask<T: DeserializeOwned>(&self, kind: &str, key: &str, method: &str) -> Result<T> {
        let question = Question::new(kind, key, method, json!({}));
        let began = Instant::now();
        for at in self.nodes.iter().cycle() {
            let said = match ask(&self.client, *at, &question).await {
                Ok(answer) => match answer.value() {
                    Ok(value) => {
                        return serde_json::from_value(value.clone())
                            .with_context(|| format!("{question} gave {value}"));
                    }
                    Err(_) => answer.text(),
                },
                Err(error) => format!("{error:#}"),
            };
            if began.elapsed() > PATIENCE {
                bail!("{question} has no answer: {said}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("no node to ask")
    }
}

fn mean_milli(sum: i64, count: u64) -> Option<i64> {
    let mean = (i128::from(sum) * 1000).checked_div(i128::from(count))?;
    i64::try_from(mean).ok()
}
