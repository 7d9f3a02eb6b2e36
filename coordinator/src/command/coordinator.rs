//! `likeness coordinator`: the control plane as a long-running service.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use likeness::shell::{self, CoordinatorSettings};
use likeness_link::WebhookSecrets;
use likeness_link::telemetry::metrics;
use tokio_util::sync::CancellationToken;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::up::signals;

/// Flags of `likeness coordinator`.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// Seconds to finish what is under way after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace_period: u64,
    /// File of the secrets that webhooks are signed with, one a line: `whsec_` and base64, or at least 24 letters; all of them sign [env: LIKENESS_WEBHOOK_SECRET_FILE; or the secret itself in LIKENESS_WEBHOOK_SECRET]
    #[arg(long, value_name = "FILE")]
    webhook_secret_file: Option<PathBuf>,
    /// Address at which Prometheus reads metrics: 127.0.0.1:9464, or 0.0.0.0:9464 for other machines [env: LIKENESS_METRICS] [default: nowhere]
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Copies of every stream and bucket on a NATS cluster, 1 to 5 [env: LIKENESS_STREAM_REPLICAS] [default: 3 on a cluster of three nodes and more, else 1; never fewer than there are]
    #[arg(long, value_name = "N")]
    stream_replicas: Option<usize>,
}

/// Runs until a signal, then within the grace period.
pub async fn run(global: &Global, args: CoordinatorArgs) -> Outcome {
    let address = global.connection.resolve()?;
    let shutdown = CancellationToken::new();
    let mut settings = CoordinatorSettings::new(address.nats, address.store);
    settings.webhook_secrets = webhook_secrets(args.webhook_secret_file, |name| std::env::var(name).ok())?;
    settings.stream_replicas = stream_replicas(args.stream_replicas, |name| std::env::var(name).ok())?;
    let from_env = || std::env::var("LIKENESS_METRICS").ok().filter(|value| !value.is_empty());
    if let Some(address) = args.metrics.or_else(from_env) {
        metrics::serve(&address).await?;
    }
    let mut service = tokio::spawn(shell::run(settings, shutdown.clone()));
    tokio::select! {
        ended = &mut service => return finished(ended),
        () = signals::stop_requested() => shutdown.cancel(),
    }
    match tokio::time::timeout(Duration::from_secs(args.grace_period), service).await {
        Ok(ended) => finished(ended),
        Err(_) => Ok(Exit::Grace),
    }
}

fn webhook_secrets(flag: Option<PathBuf>, env: impl Fn(&str) -> Option<String>) -> Outcome<WebhookSecrets> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(file) = flag.or_else(|| env("LIKENESS_WEBHOOK_SECRET_FILE").map(PathBuf::from)) {
        return Ok(WebhookSecrets::read(&file)?);
    }
    let secrets = env("LIKENESS_WEBHOOK_SECRET").map(|secret| WebhookSecrets::parse(&secret)).transpose()?;
    Ok(secrets.unwrap_or_default())
}

fn stream_replicas(flag: Option<usize>, env: impl Fn(&str) -> Option<String>) -> Outcome<Option<usize>> {
    let env = env("LIKENESS_STREAM_REPLICAS").filter(|value| !value.is_empty());
    let wrong = |value: &str| Failure::usage(format!("`{value}` copies of a stream can't be: NATS keeps 1 to 5"));
    let replicas = match (flag, env) {
        (Some(flag), _) => flag,
        (None, Some(text)) => text.trim().parse().map_err(|_| wrong(&text))?,
        (None, None) => return Ok(None),
    };
    if (1..=5).contains(&replicas) { Ok(Some(replicas)) } else { Err(wrong(&replicas.to_string())) }
}

fn finished(ended: Result<likeness_link::Result<()>, tokio::task::JoinError>) -> Outcome {
    ended.map_err(Failure::failed)??;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_webhooks_come_from_flag_file_or_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "a-secret-in-a-file-of-some-length").unwrap();
        let none = webhook_secrets(None, |_| None).unwrap();
        assert!(none.is_empty());
        let of = |name: &'static str, value: String| move |asked: &str| (asked == name).then(|| value.clone());
        let path = file.display().to_string();
        assert!(!webhook_secrets(Some(file.clone()), |_| None).unwrap().is_empty());
        assert!(!webhook_secrets(None, of("LIKENESS_WEBHOOK_SECRET_FILE", path)).unwrap().is_empty());
        let secret = "a-secret-in-the-environment".to_string();
        assert!(!webhook_secrets(None, of("LIKENESS_WEBHOOK_SECRET", secret)).unwrap().is_empty());
        let wrong = webhook_secrets(None, of("LIKENESS_WEBHOOK_SECRET", "short".into())).unwrap_err();
        assert_eq!(wrong.exit, Exit::Usage);
        assert!(!wrong.to_string().contains("short"), "{wrong}");
    }

    #[test]
    fn copies_of_streams_come_from_flag_or_environment() {
        let of = |value: &'static str| move |_: &str| Some(value.to_string());
        assert_eq!(stream_replicas(None, |_| None).unwrap(), None);
        assert_eq!(stream_replicas(None, of("3")).unwrap(), Some(3));
        assert_eq!(stream_replicas(Some(1), of("3")).unwrap(), Some(1));
        for wrong in
            [stream_replicas(Some(0), |_| None), stream_replicas(None, of("many")), stream_replicas(None, of("6"))]
        {
            assert_eq!(wrong.unwrap_err().exit, Exit::Usage);
        }
    }
}
