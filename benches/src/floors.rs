//! What Mainstay is held against: the least that the machine needs for the same answer.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::ReadableDatabase as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// An ask of a task: the answer comes back through a oneshot.
struct Ask(oneshot::Sender<u64>);

/// Asks per second of `callers` tasks over `actors` tokio tasks, each with a channel of 64.
pub(crate) async fn mpsc_oneshot(callers: usize, actors: usize, span: Duration) -> f64 {
    let actors: Arc<Vec<mpsc::Sender<Ask>>> = Arc::new((0..actors).map(|_| actor()).collect());
    let deadline = Instant::now() + span;
    let started = Instant::now();
    let callers: Vec<_> = (0..callers)
        .map(|caller| {
            let actors = Arc::clone(&actors);
            tokio::spawn(async move {
                let (mut done, mut at) = (0_u64, caller * 7919);
                while Instant::now() < deadline {
                    let (reply, answer) = oneshot::channel();
                    at = (at + 7919) % actors.len();
                    if actors[at].send(Ask(reply)).await.is_ok() && answer.await.is_ok() {
                        done += 1;
                    }
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for caller in callers {
        done += caller.await.unwrap_or(0);
    }
    per_second(done, started)
}

fn actor() -> mpsc::Sender<Ask> {
    let (sender, mut asks) = mpsc::channel::<Ask>(64);
    tokio::spawn(async move {
        let mut value = 0_u64;
        while let Some(Ask(reply)) = asks.recv().await {
            value += 1;
            reply.send(value).unwrap_or_default();
        }
    });
    sender
}

/// The other side of [`tcp_ask`]: echoes 8-byte asks, one write per read chunk.
pub(crate) async fn tcp_echo(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(read @ 1..) = stream.read(&mut chunk).await {
                if stream.write_all(&chunk[..read]).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// Asks per second over one connection with `outstanding` 100-byte asks in flight: an RPC floor
/// that coalesces writes and answers through slots.
pub(crate) async fn tcp_ask(
    addr: std::net::SocketAddr,
    outstanding: usize,
    span: Duration,
) -> std::io::Result<f64> {
    const ASK_BYTES: usize = 100;
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let ask = vec![7_u8; ASK_BYTES * outstanding];
    let mut answers = vec![0; 64 << 10];
    let (started, mut done) = (Instant::now(), 0_u64);
    stream.write_all(&ask).await?;
    let mut partial = 0;
    while started.elapsed() < span {
        let read = stream.read(&mut answers).await?;
        if read == 0 {
            break;
        }
        let whole = (partial + read) / ASK_BYTES;
        partial = (partial + read) % ASK_BYTES;
        done += whole as u64;
        stream.write_all(&ask[..whole * ASK_BYTES]).await?;
    }
    Ok(per_second(done, started))
}

/// Commands per second of an append-only file with one `fdatasync` per batch of `batch` commands
/// of 100 bytes.
pub(crate) fn append_log(batch: usize, span: Duration) -> std::io::Result<f64> {
    let mut file: File = tempfile::tempfile()?;
    let bytes = vec![7_u8; 100 * batch];
    let (started, mut done) = (Instant::now(), 0_u64);
    while started.elapsed() < span {
        file.write_all(&bytes)?;
        file.sync_data()?;
        done += batch as u64;
    }
    Ok(per_second(done, started))
}

/// Random reads per second from one table of 100,000 small rows: the floor of an activation.
pub(crate) fn redb_reads(span: Duration) -> anyhow::Result<f64> {
    const ROWS: u64 = 100_000;
    const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("rows");
    let file = tempfile::NamedTempFile::new()?;
    let database = redb::Database::create(file.path())?;
    let write = database.begin_write()?;
    {
        let mut table = write.open_table(TABLE)?;
        for row in 0..ROWS {
            table.insert(row, [7_u8; 16].as_slice())?;
        }
    }
    write.commit()?;
    let (started, mut done) = (Instant::now(), 0_u64);
    while started.elapsed() < span {
        let table = database.begin_read()?.open_table(TABLE)?;
        let row = done.wrapping_mul(0x9e37_79b9_7f4a_7c15) % ROWS;
        anyhow::ensure!(table.get(row)?.is_some(), "row {row} was written");
        done += 1;
    }
    Ok(per_second(done, started))
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn per_second(done: u64, since: Instant) -> f64 {
    done as f64 / since.elapsed().as_secs_f64()
}

/// This many idle tasks, each waiting on a channel of 16.
pub(crate) async fn idle_tasks(count: usize) -> Vec<mpsc::Sender<u64>> {
    let senders = (0..count)
        .map(|_| {
            let (sender, mut receiver) = mpsc::channel::<u64>(16);
            tokio::spawn(async move {
                let mut value = 0;
                while let Some(by) = receiver.recv().await {
                    value += by;
                }
                value
            });
            sender
        })
        .collect();
    // Each task has run once when this one runs again.
    tokio::time::sleep(Duration::from_millis(200)).await;
    senders
}
