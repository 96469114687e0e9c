//! The clients: each makes one call at a time and repeats it until its outcome is definite.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use tokio::task::JoinSet;

use super::door::{Attempt, Door};
use super::ledger::{ACCOUNTS, ACCOUNTS_PER_BRANCH, Book, DEVICES, Order, Readings};
use super::meter::Meter;

/// Clients of the bank.
const TELLERS: u32 = 24;
/// Clients that send the readings of the devices.
const GATEWAYS: u32 = 8;
/// Of 100 transfers, so many stay in one branch, and so in one shard.
const COLOCATED: u32 = 60;
/// The most that a transfer moves, in cents.
const CENTS_MAX: u64 = 9_000;
/// Bounds of the pause before a call is repeated, drawn anew each time.
const PAUSE: (u64, u64) = (20, 200);

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    meter: Arc<Meter>,
    signs: Arc<Signs>,
    clients: JoinSet<Book>,
}

/// What the clients look at between two attempts.
#[derive(Debug, Default)]
struct Signs {
    /// Begin no new call.
    stop: AtomicBool,
    /// Repeat no call either.
    give_up: AtomicBool,
}

impl Load {
    /// Opens the accounts, so that the load finds money in them.
    ///
    /// # Errors
    /// When an account cannot be opened within 20 s.
    pub async fn open_accounts(door: &Door) -> Result<()> {
        let mut openings = JoinSet::new();
        for branch in 0..ACCOUNTS / ACCOUNTS_PER_BRANCH {
            let door = door.clone();
            openings.spawn(async move {
                for account in 0..ACCOUNTS_PER_BRANCH {
                    open(&door, branch * ACCOUNTS_PER_BRANCH + account).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(opened) = openings.join_next().await {
            opened.context("a client panicked")??;
        }
        Ok(())
    }

    /// Sets all clients to work. Even ones come in by HTTP, odd ones by Rust.
    pub fn start(http: &Door, rust: &Door, seed: u64, meter: &Arc<Meter>) -> Self {
        let signs = Arc::new(Signs::default());
        let mut clients = JoinSet::new();
        for number in 0..TELLERS + GATEWAYS {
            let door = if number % 2 == 0 { http } else { rust };
            let client = Client {
                number,
                door: door.clone(),
                rng: Rng::with_seed(seed ^ (u64::from(number) << 32)),
                meter: Arc::clone(meter),
                signs: Arc::clone(&signs),
                book: Book::default(),
            };
            if number < TELLERS {
                clients.spawn(client.transfer_until_stopped());
            } else {
                clients.spawn(client.read_until_stopped());
            }
        }
        Self { meter: Arc::clone(meter), signs, clients }
    }

    /// Begins no new call.
    pub fn stop(&self) {
        self.signs.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until every call has a definite outcome, at most this long; then what the clients
    /// were told.
    pub async fn finish(mut self, within: Duration) -> Book {
        self.stop();
        let mut book = Book::default();
        let signs = Arc::clone(&self.signs);
        let patience = tokio::spawn(async move {
            tokio::time::sleep(within).await;
            signs.give_up.store(true, Ordering::Relaxed);
        });
        while let Some(client) = self.clients.join_next().await {
            match client {
                Ok(told) => book.merge(told),
                Err(error) => book.wrong.push(format!("a client ended: {error}")),
            }
        }
        patience.abort();
        book
    }

    /// The counts of all clients.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

async fn open(door: &Door, account: u32) -> Result<()> {
    let began = Instant::now();
    for attempt in 0.. {
        match door.open(account, attempt).await {
            Attempt::Done => return Ok(()),
            Attempt::Unsettled(why) if began.elapsed() > Duration::from_secs(20) => {
                bail!("account {account} cannot be opened: {why}")
            }
            Attempt::Unsettled(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Attempt::Refused => bail!("account {account} was refused"),
            Attempt::Wrong(why) => bail!("account {account}: {why}"),
        }
    }
    Ok(())
}

struct Client {
    number: u32,
    door: Door,
    rng: Rng,
    meter: Arc<Meter>,
    signs: Arc<Signs>,
    book: Book,
}

/// One thing to write.
enum Write<'w> {
    Transfer(&'w Order),
    Reading { device: u32, seq: u64, value: i64 },
}

impl Client {
    async fn transfer_until_stopped(mut self) -> Book {
        for number in 0.. {
            if self.signs.stop.load(Ordering::Relaxed) {
                break;
            }
            let order = self.order(number);
            match self.settle(&Write::Transfer(&order)).await {
                Attempt::Done => self.book.moved.push(order),
                Attempt::Refused => self.book.refused.push(order),
                Attempt::Unsettled(why) => {
                    self.book.unsettled.push(format!("{}: {why}", order.key()));
                }
                Attempt::Wrong(why) => self.book.wrong.push(format!("{}: {why}", order.key())),
            }
        }
        self.book
    }

    fn order(&mut self, number: u32) -> Order {
        let from = self.rng.u32(0..ACCOUNTS);
        let first = from - from % ACCOUNTS_PER_BRANCH;
        let to = loop {
            let to = if self.rng.u32(0..100) < COLOCATED {
                first + self.rng.u32(0..ACCOUNTS_PER_BRANCH)
            } else {
                self.rng.u32(0..ACCOUNTS)
            };
            if to != from {
                break to;
            }
        };
        Order { client: self.number, number, from, to, cents: self.rng.u64(1..=CENTS_MAX) }
    }

    async fn read_until_stopped(mut self) -> Book {
        let mine = (0..DEVICES).filter(|device| device % GATEWAYS == self.number % GATEWAYS);
        let mut devices: Vec<Readings> =
            mine.map(|device| Readings { device, acknowledged: 0, sum: 0, latest: 0 }).collect();
        'rounds: loop {
            for readings in &mut devices {
                if self.signs.stop.load(Ordering::Relaxed) {
                    break 'rounds;
                }
                let (device, seq) = (readings.device, readings.acknowledged + 1);
                let value = self.rng.i64(-40_000..60_000);
                match self.settle(&Write::Reading { device, seq, value }).await {
                    Attempt::Done => {
                        readings.acknowledged = seq;
                        readings.sum += value;
                        readings.latest = value;
                    }
                    Attempt::Unsettled(why) => {
                        self.book.unsettled.push(format!("device {device}, reading {seq}: {why}"));
                    }
                    Attempt::Refused => {
                        self.book.wrong.push(format!("device {device}: a reading was refused"));
                    }
                    Attempt::Wrong(why) => self.book.wrong.push(format!("device {device}: {why}")),
                }
            }
        }
        self.book.readings = devices;
        self.book
    }

    /// Repeats a write until its outcome is definite, or until it is time to give up.
    async fn settle(&mut self, write: &Write<'_>) -> Attempt {
        let began = Instant::now();
        let mut attempt = 0;
        let outcome = loop {
            // Clients prefer different nodes; a repeated call goes to the next one.
            let through = self.number as usize + attempt;
            let outcome = match *write {
                Write::Transfer(order) => self.door.transfer(order, through).await,
                Write::Reading { device, seq, value } => {
                    self.door.reading(device, seq, value, through).await
                }
            };
            let definite = !matches!(outcome, Attempt::Unsettled(_));
            if definite || self.signs.give_up.load(Ordering::Relaxed) {
                break outcome;
            }
            self.meter.unsettled(attempt == 0);
            attempt += 1;
            let pause = self.rng.u64(PAUSE.0..PAUSE.1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        };
        if attempt > 0 {
            self.meter.gave_way();
        }
        if matches!(outcome, Attempt::Done | Attempt::Refused) {
            self.meter.settled(began.elapsed());
        }
        outcome
    }
}
