//! Logs and metrics of the process: set up once, before anything else runs.

use std::io::IsTerminal as _;

use mainstay::journey;
use mainstay::metrics::{Metric, Type};
use mainstay::storage::StorageError;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::settings::{Log, LogFormat};

/// Why telemetry was not set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse. Nothing was set up.
    #[error("log.filter {filter:?} is not a filter")]
    Filter {
        /// The filter, as given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber or a recorder already: it hosts another node, or set up its
    /// own. That one goes on.
    #[error("the process has its {what} already")]
    Twice {
        /// `log` or `metrics`.
        what: &'static str,
    },
}

/// How log lines will look on this process's standard error.
pub fn resolve(format: LogFormat) -> LogFormat {
    match format {
        LogFormat::Auto if std::io::stderr().is_terminal() => LogFormat::Compact,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    }
}

/// Sends the log to standard error.
///
/// # Errors
/// [`Error`], by what is wrong.
pub fn install_log(log: &Log, color: bool) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|source| Error::Filter { filter: log.filter.clone(), source })?;
    // a journey is read off the beginnings of its spans; nobody else wants a line per span
    let begun = if log.filter.contains(journey::TARGET) { FmtSpan::NEW } else { FmtSpan::NONE };
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(color).with_span_events(begun);
    let lines = match resolve(log.format) {
        LogFormat::Pretty => lines.pretty().boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Compact | LogFormat::Auto => lines.compact().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(CountLines)
        .with(lines)
        .try_init()
        .map_err(|_| Error::Twice { what: "log" })
}

/// Takes all metrics of the process, with the buckets that the catalogue gives.
///
/// # Errors
/// [`Error::Twice`].
///
/// # Panics
/// When a histogram of the catalogue has no buckets.
pub fn install_metrics(catalog: &[Metric]) -> Result<PrometheusHandle, Error> {
    let mut builder = PrometheusBuilder::new();
    for metric in catalog {
        if let Type::Histogram(buckets) = metric.is {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder
                .set_buckets_for_metric(name, buckets)
                .expect("the catalogue gives every histogram its buckets");
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| Error::Twice { what: "metrics" })?;
    describe(catalog);
    StorageError::count_from_zero();
    Ok(handle)
}

/// Tells the recorder the help texts.
fn describe(catalog: &[Metric]) {
    for metric in catalog {
        match metric.is {
            Type::Counter => metrics::describe_counter!(metric.name, metric.help),
            Type::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Type::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Counts log lines by level: the rate of errors is the cheapest alarm.
struct CountLines;

impl<S: Subscriber> Layer<S> for CountLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        metrics::counter!("mainstay_log_messages_total", "level" => level).increment(1);
    }
}
