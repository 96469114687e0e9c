//! Clients of one round: each calls one entity after the other and writes down what it saw.
//!
//! A keyed write is repeated through one door after the other until its outcome is known. Whatever
//! has no key is tried once. Some appends name the version that was read just before: it names one
//! state, so that to the history they are appends to a list of the length that was shown. The first
//! client sticks to its door, whatever happens there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::RECOVERS_WITHIN;
use super::record::Record;
use crate::history::register::{Access, Does};
use crate::history::{Op, Outcome, Reply};
use crate::processes::{Answer, Definite, Question, ask};

/// Entities of a round, of each kind.
const LISTS: usize = 24;
const REGISTERS: usize = 8;
/// Between two calls of a client, at most.
const PAUSE_MILLIS_MAX: u64 = 8;
/// Between two tries of a call.
const AGAIN_AFTER: Duration = Duration::from_millis(10);
/// Who reads in the end.
const READER: u32 = u32::MAX;

/// What the clients of a round share. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    client: reqwest::Client,
    doors: Vec<SocketAddr>,
    round: usize,
    record: Arc<Record>,
    stop: Arc<AtomicBool>,
}

/// How one try ended.
enum Seen {
    /// The value, and the version that it shows.
    Value(Value, u64),
    /// Its entity is at another version than it names.
    Unmet,
    NotExecuted,
    Unknown,
}

impl Stage {
    pub(super) fn new(
        client: reqwest::Client,
        doors: Vec<SocketAddr>,
        round: usize,
        record: Arc<Record>,
    ) -> Self {
        Self { client, doors, round, record, stop: Arc::default() }
    }

    /// Starts the clients.
    pub(super) fn start(&self, clients: u32, mut rng: fastrand::Rng) -> JoinSet<Result<()>> {
        let mut set = JoinSet::new();
        for number in 0..clients {
            let client =
                Client { number, stage: self.clone(), rng: rng.fork(), door: 0, written: 0 };
            set.spawn(client.run());
        }
        set
    }

    /// Clients end what they began, and begin nothing more.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Reads everything through every door; what each showed of each list.
    pub(super) async fn read_all(&self) -> Result<Vec<(String, Vec<u64>)>> {
        let mut lists = Vec::new();
        for door in 0..self.doors.len() {
            for number in 0..LISTS {
                let name = self.name("list", number);
                let read = async || self.read_list(READER, door, &name).await;
                lists.push((name.clone(), patient(&name, read).await?.0));
            }
            for number in 0..REGISTERS {
                let name = self.name("register", number);
                let read = async || self.read_register(READER, door, &name).await;
                patient(&name, read).await?;
            }
        }
        Ok(lists)
    }

    fn name(&self, kind: &str, number: usize) -> String {
        format!("{kind}-{}-{number}", self.round)
    }

    /// What a list shows, and at which version.
    async fn read_list(
        &self,
        client: u32,
        door: usize,
        list: &str,
    ) -> Result<Option<(Vec<u64>, u64)>> {
        let question = Question::new("list", list, "items", json!({}));
        let id = self.record.invoke(client, list, Op::Read)?;
        let seen = self.ask(door, &question).await;
        let items = match &seen {
            Seen::Value(value, version) => Some((serde_json::from_value(value.clone())?, *version)),
            Seen::Unmet | Seen::NotExecuted | Seen::Unknown => None,
        };
        let shown = |value: &Value| Ok(Reply::List(serde_json::from_value(value.clone())?));
        self.record.end(id, seen.outcome(shown)?)?;
        Ok(items)
    }

    async fn read_register(&self, client: u32, door: usize, name: &str) -> Result<Option<i64>> {
        let question = Question::new("register", name, "get", json!({}));
        let invoked = self.record.now();
        let Seen::Value(value, _) = self.ask(door, &question).await else { return Ok(None) };
        let value = serde_json::from_value(value)?;
        let (answered, does) = (Some(self.record.now()), Does::Read { value });
        self.record.access(name, Access { client, invoked, answered, does }, None);
        Ok(Some(value))
    }

    /// One try through one door.
    async fn ask(&self, door: usize, question: &Question) -> Seen {
        match ask(&self.client, self.doors[door % self.doors.len()], question).await {
            Ok(answer) => self.judge(question, &answer),
            Err(error) => match error.downcast_ref::<reqwest::Error>() {
                Some(error) if error.is_connect() => Seen::NotExecuted,
                _ => Seen::Unknown,
            },
        }
    }

    fn judge(&self, question: &Question, answer: &Answer) -> Seen {
        match answer.definite() {
            Some(Definite::Value(value)) => {
                Seen::Value(value, answer.body["version"].as_u64().unwrap_or_default())
            }
            Some(_) if answer.code() == "MS-2111" => Seen::Unmet,
            Some(odd) => {
                self.record.odd(format!("{question}: {odd:?}"));
                Seen::Unknown
            }
            None if answer.body["outcome"] == "not_executed" => Seen::NotExecuted,
            None => Seen::Unknown,
        }
    }
}

/// Repeats a read until it is answered.
async fn patient<T>(what: &str, mut read: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(seen) = read().await? {
            return Ok(seen);
        }
        if began.elapsed() > RECOVERS_WITHIN {
            bail!("all nodes run again, and nobody shows {what}");
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

impl Seen {
    fn outcome(&self, reply: impl FnOnce(&Value) -> Result<Reply>) -> Result<Outcome> {
        Ok(match self {
            Self::Value(value, _) => Outcome::Returned(reply(value)?),
            Self::Unmet | Self::NotExecuted => Outcome::NotExecuted,
            Self::Unknown => Outcome::Unknown,
        })
    }
}

/// One client.
struct Client {
    number: u32,
    stage: Stage,
    rng: fastrand::Rng,
    door: usize,
    /// Values it has used.
    written: u32,
}

impl Client {
    async fn run(mut self) -> Result<()> {
        while !self.stage.stop.load(Ordering::Relaxed) {
            if !self.sticks() {
                self.door = self.rng.usize(..self.stage.doors.len());
            }
            let list = self.stage.name("list", self.rng.usize(..LISTS));
            let register = self.stage.name("register", self.rng.usize(..REGISTERS));
            match self.rng.u8(..20) {
                0..7 => self.append(&list, None).await?,
                7..10 => self.append_to_shown(&list).await?,
                10..14 => self.set(&register).await?,
                14..18 => drop(self.stage.read_list(self.number, self.door, &list).await?),
                _ => drop(self.stage.read_register(self.number, self.door, &register).await?),
            }
            tokio::time::sleep(Duration::from_millis(self.rng.u64(..PAUSE_MILLIS_MAX))).await;
        }
        Ok(())
    }

    const fn sticks(&self) -> bool {
        self.number == 0
    }

    /// A value that nobody else writes, with its key if it has one.
    fn value(&mut self) -> (u64, Option<u64>) {
        self.written += 1;
        let value = u64::from(self.number + 1) * 1_000_000 + u64::from(self.written);
        (value, self.rng.bool().then_some(value))
    }

    /// How long a try may take.
    fn deadline(&mut self) -> Duration {
        Duration::from_millis([200, 500, 1_000, 3_000][self.rng.usize(..4)])
    }

    /// The same question, under its key.
    fn question(&mut self, question: Question, key: Option<u64>) -> Question {
        let question = question.deadline(self.deadline());
        match key {
            Some(key) => question.key(format!("k{key}")),
            None => question,
        }
    }

    /// Appends to the list that it is shown, and to no other.
    async fn append_to_shown(&mut self, list: &str) -> Result<()> {
        match self.stage.read_list(self.number, self.door, list).await? {
            Some((items, version)) => {
                self.append(list, Some((u64::try_from(items.len())?, version))).await
            }
            None => Ok(()),
        }
    }

    /// Appends; under a condition, to a list of this length and at this version.
    async fn append(&mut self, list: &str, condition: Option<(u64, u64)>) -> Result<()> {
        let (value, key) = self.value();
        let question = Question::new("list", list, "append", json!({ "item": value }));
        let mut question = self.question(question, key);
        let op = match condition {
            None => Op::Append { value, key },
            Some((length, version)) => {
                question = question.header("If-Match", format!("\"{version}\""));
                Op::AppendIf { length, value, key }
            }
        };
        let began = Instant::now();
        loop {
            let id = self.stage.record.invoke(self.number, list, op)?;
            let seen = self.stage.ask(self.door, &question).await;
            let length = |value: &Value| Ok(Reply::Length(serde_json::from_value(value.clone())?));
            self.stage.record.end(id, seen.outcome(length)?)?;
            if let Seen::Value(..) = seen {
                self.stage.record.appended(list, value, self.waited(began));
                return Ok(());
            }
            if matches!(seen, Seen::Unmet) || !self.again(key, began).await {
                return Ok(());
            }
        }
    }

    async fn set(&mut self, register: &str) -> Result<()> {
        let (value, key) = self.value();
        let value = i64::try_from(value)?;
        let question = Question::new("register", register, "set", json!({ "value": value }));
        let question = self.question(question, key);
        let (began, invoked) = (Instant::now(), self.stage.record.now());
        let before = loop {
            match self.stage.ask(self.door, &question).await {
                Seen::Value(before, _) => break Some(serde_json::from_value(before)?),
                Seen::NotExecuted if key.is_none() => return Ok(()),
                Seen::Unmet | Seen::NotExecuted | Seen::Unknown => {
                    if !self.again(key, began).await {
                        break None;
                    }
                }
            }
        };
        let answered = before.map(|_| self.stage.record.now());
        let does = Does::Write { value, before };
        let access = Access { client: self.number, invoked, answered, does };
        self.stage.record.access(register, access, self.waited(began));
        Ok(())
    }

    /// Whether a write is tried again; goes to the next door, unless it sticks to one.
    async fn again(&mut self, key: Option<u64>, began: Instant) -> bool {
        if key.is_none() || began.elapsed() > RECOVERS_WITHIN {
            return false;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
        self.door += usize::from(!self.sticks());
        true
    }

    /// How long a write took, as it counts: the wait of who sticks to a dead door says little.
    fn waited(&self, began: Instant) -> Option<Duration> {
        (!self.sticks()).then(|| began.elapsed())
    }
}
