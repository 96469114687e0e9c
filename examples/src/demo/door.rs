//! The two ways in: HTTP, as `curl` would, and the Rust client with its typed references.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use mainstay::client::Ref;
use mainstay::client::remote::Client;
use mainstay::prelude::*;
use mainstay::router::kinds::KindTable;
use mainstay_cluster_tests::processes::{Definite, Question, ask};
use serde_json::json;

use super::ledger::{OPENING_CENTS, Order, account_key, device_key};
use crate::bank::{Account, Transfer};
use crate::devices::Telemetry;

/// How long one attempt waits.
const DEADLINE: Duration = Duration::from_secs(3);

/// A way in.
#[derive(Debug, Clone)]
pub enum Door {
    /// Keep-alive connections to every node; attempts go round.
    Http {
        /// The client.
        client: reqwest::Client,
        /// The nodes' HTTP addresses, the preferred one first.
        nodes: Vec<SocketAddr>,
    },
    /// A client that holds the map and asks each shard's primary.
    Rust(Client),
}

/// What one attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// Acknowledged.
    Done,
    /// The entity refused; so it will again.
    Refused,
    /// It may have been executed or not.
    Unsettled(String),
    /// An answer that this call should never get.
    Wrong(String),
}

impl Door {
    /// The way in by Rust, through any of these peer addresses.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn rust(peers: &[String], registry: &Registry) -> Result<Self> {
        let client = Client::connect(peers, KindTable::of(registry.kinds())).await;
        Ok(Self::Rust(client.context("the Rust client")?))
    }

    /// Puts the opening balance into an account, once.
    pub async fn open(&self, account: u32, attempt: usize) -> Attempt {
        let key = account_key(account);
        match self {
            Self::Http { .. } => {
                let body = json!({ "cents": OPENING_CENTS });
                self.post(Question::new("account", &key, "deposit", body).key("opening"), attempt)
                    .await
            }
            Self::Rust(client) => {
                let call = entity::<Account>(client, &key).deposit(OPENING_CENTS);
                told(call.key("opening").deadline(DEADLINE).await.map(drop))
            }
        }
    }

    /// Makes a transfer: orders it, then runs it under its own name as the idempotency key.
    pub async fn transfer(&self, order: &Order, attempt: usize) -> Attempt {
        match self.order(order, attempt).await {
            Attempt::Done => self.run(order, attempt).await,
            Attempt::Refused => Attempt::Wrong("the terms of a transfer were refused".to_owned()),
            other => other,
        }
    }

    /// An order needs no key: a repeated one changes nothing.
    async fn order(&self, order: &Order, attempt: usize) -> Attempt {
        let (from, to) = (account_key(order.from), account_key(order.to));
        match self {
            Self::Http { .. } => {
                let body = json!({ "from": from, "to": to, "cents": order.cents });
                self.post(Question::new("transfer", &order.key(), "order", body), attempt).await
            }
            Self::Rust(client) => {
                let call = entity::<Transfer>(client, &order.key()).order(from, to, order.cents);
                told(call.deadline(DEADLINE).await.map(drop))
            }
        }
    }

    async fn run(&self, order: &Order, attempt: usize) -> Attempt {
        let key = order.key();
        match self {
            Self::Http { .. } => {
                let question = Question::new("transfer", &key, "run", json!({})).key(&key);
                self.post(question, attempt).await
            }
            Self::Rust(client) => {
                let call = entity::<Transfer>(client, &key).run();
                told(call.key(&key).deadline(DEADLINE).await.map(drop))
            }
        }
    }

    /// Sends a reading; its number makes it count once.
    pub async fn reading(&self, device: u32, seq: u64, value: i64, attempt: usize) -> Attempt {
        let key = device_key(device);
        match self {
            Self::Http { .. } => {
                let body = json!({ "seq": seq, "value": value });
                self.post(Question::new("device", &key, "reading", body), attempt).await
            }
            Self::Rust(client) => {
                let call = entity::<Telemetry>(client, &key).reading(seq, value);
                told(call.deadline(DEADLINE).await.map(drop))
            }
        }
    }

    async fn post(&self, question: Question, attempt: usize) -> Attempt {
        let Self::Http { client, nodes } = self else {
            return Attempt::Wrong("no HTTP behind this door".to_owned());
        };
        let at = nodes[attempt % nodes.len()];
        match ask(client, at, &question.deadline(DEADLINE)).await {
            Ok(answer) => match answer.definite() {
                Some(Definite::Value(_)) => Attempt::Done,
                Some(Definite::Refused(_)) => Attempt::Refused,
                Some(Definite::Impossible(problem)) => Attempt::Wrong(problem),
                None => Attempt::Unsettled(answer.text()),
            },
            Err(error) => Attempt::Unsettled(format!("{error:#}")),
        }
    }
}

fn entity<E: Entity>(client: &Client, key: &str) -> E::Ref {
    Ref::<E>::new(client.port(), key).into()
}

fn told<E: std::fmt::Debug>(result: Result<(), CallError<E>>) -> Attempt {
    match result {
        Ok(()) => Attempt::Done,
        Err(CallError::App(_)) => Attempt::Refused,
        Err(
            error @ (CallError::Overloaded { .. }
            | CallError::Deadline { .. }
            | CallError::Unavailable { .. }),
        ) => Attempt::Unsettled(format!("{error:?}")),
        Err(error) => Attempt::Wrong(format!("{error:?}")),
    }
}
