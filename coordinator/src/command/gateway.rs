//! `likeness gateway`: HTTP, the web page, and keys for those who ask.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderValue;
use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{line, note, say};
use crate::command::up::signals;
use crate::gateway::{self, DEFAULT_RATE, Gateway, Keys, Limits, Role, Settings, check_address, new_key};

/// Address without a flag.
pub const DEFAULT_HTTP: &str = "127.0.0.1:8484";
/// Longest time until a request's header is there, and so between two requests of a connection.
const HEADER: Duration = Duration::from_secs(30);

/// Flags of `likeness gateway`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --keys everybody on this machine may do everything, and only addresses of this machine are accepted. For others:

  likeness gateway key keys.txt alice --role operator     prints the key once; the file keeps its digest
  likeness gateway --keys keys.txt --http 0.0.0.0:8484

A line of the file is taken out to withdraw a key; the gateway notices within a second. Roles: a reader searches and looks, an operator \
also submits, cancels, promotes and rolls back, an admin also takes items down. TLS is for a proxy in front of it to add.")]
pub struct GatewayArgs {
    #[command(subcommand)]
    command: Option<GatewayCommand>,
    /// Address that is listened on.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_HTTP)]
    http: SocketAddr,
    /// File of the keys that are let in [env: LIKENESS_KEYS]
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Requests a second of a key whose line says nothing else; twice as many at once after a pause.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE)]
    rate: f64,
    /// Largest body of a request, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1024))]
    max_body: u64,
    /// Longest time for an answer, seconds; promotions and streams of events may take longer.
    #[arg(long, value_name = "SECONDS", default_value_t = 70, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Most connections at once; others wait until one ends. Each takes a file handle.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Let browsers ask from pages of this origin, such as https://example.com; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Seconds to finish what is under way after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace_period: u64,
}

/// Subcommands of `likeness gateway`.
#[derive(Debug, Subcommand)]
enum GatewayCommand {
    /// Make a key, print it, and append its digest to a file.
    Key {
        /// The file of keys; made where it is not there.
        file: PathBuf,
        /// A name for logs.
        name: String,
        /// What the key may do.
        #[arg(long, default_value = "reader")]
        role: Role,
        /// Requests a second.
        #[arg(long, value_name = "N")]
        rate: Option<f64>,
    },
}

/// Answers until a signal, then within the grace period.
pub async fn run(global: &Global, args: GatewayArgs) -> Outcome {
    if let Some(GatewayCommand::Key { file, name, role, rate }) = &args.command {
        return add_key(file, name, *role, *rate);
    }
    let settings = settings(&args)?;
    check_address(args.http, &settings.keys)?;
    let client = global.connection.client().await?;
    let listener = TcpListener::bind(args.http).await;
    let listener =
        listener.map_err(|error| Failure::failed(format!("can't listen on `{}`: {error} (--http)", args.http)))?;
    if settings.keys.is_local() {
        note("no --keys: everybody on this machine may do everything, and nobody else anything");
    }
    note(format!("http://{}", listener.local_addr()?));
    let stopping = CancellationToken::new();
    let gateway = Gateway::new(client, settings, stopping.clone());
    let service = tokio::spawn(gateway::serve(gateway, listener));
    signals::stop_requested().await;
    stopping.cancel();
    match tokio::time::timeout(Duration::from_secs(args.grace_period), service).await {
        Ok(ended) => ended.map(|()| Exit::Done).map_err(Failure::failed),
        Err(_) => Ok(Exit::Grace),
    }
}

fn settings(args: &GatewayArgs) -> Outcome<Settings> {
    if !(0.001..=1e9).contains(&args.rate) {
        return Err(Failure::usage(format!("--rate {} is not above 0", args.rate)));
    }
    let named = std::env::var_os("LIKENESS_KEYS").filter(|file| !file.is_empty()).map(PathBuf::from);
    let keys = Keys::open(args.keys.clone().or(named).as_deref(), args.rate)?;
    let allow_origins = args.allow_origin.iter().map(|text| origin(text)).collect::<Outcome<_>>()?;
    let (max_body_bytes, timeout) = ((args.max_body as usize) << 20, Duration::from_secs(args.timeout));
    let limits = Limits { connections: args.max_connections as usize, header: HEADER };
    Ok(Settings { keys, allow_origins, max_body_bytes, timeout, limits })
}

/// Browsers compare it letter by letter: without a path, without a last `/`.
fn origin(text: &str) -> Outcome<HeaderValue> {
    let wrong = || Failure::usage(format!("--allow-origin `{text}` is no origin such as https://example.com"));
    let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
    let plain = matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains(['/', '*', ' ']);
    if plain { HeaderValue::from_str(text).map_err(|_| wrong()) } else { Err(wrong()) }
}

fn add_key(file: &Path, name: &str, role: Role, rate: Option<f64>) -> Outcome {
    if rate.is_some_and(|rate| !(0.001..=1e9).contains(&rate)) {
        return Err(Failure::usage("--rate is not above 0"));
    }
    let (key, digest_line) = new_key(name, role, rate)?;
    let cannot = |error: std::io::Error| Failure::failed(format!("can't write to `{}`: {error}", file.display()));
    let mut keys = std::fs::File::options().create(true).append(true).open(file).map_err(cannot)?;
    std::io::Write::write_all(&mut keys, format!("{digest_line}\n").as_bytes()).map_err(cannot)?;
    line(key);
    say(format!("this is the only time that the key is shown; `{}` keeps its digest", file.display()));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_may_ask_only_with_keys() {
        let keys = Keys::Local { rate: 1.0 };
        assert!(check_address("127.0.0.1:1".parse().unwrap(), &keys).is_ok());
        assert!(check_address("[::1]:1".parse().unwrap(), &keys).is_ok());
        let refused = check_address("0.0.0.0:8484".parse().unwrap(), &keys).unwrap_err();
        assert!(refused.exit == Exit::Usage && refused.to_string().contains("--keys"), "{refused}");
    }

    #[test]
    fn an_origin_is_what_browsers_send() {
        assert!(origin("https://example.com").is_ok() && origin("http://localhost:3000").is_ok());
        for wrong in ["*", "example.com", "https://example.com/", "https://*.example.com", "ftp://a", "https://"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_new_key_is_appended() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        add_key(&file, "a", Role::Reader, None).unwrap();
        add_key(&file, "b", Role::Admin, Some(3.0)).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.starts_with("a reader sha256:") && text.contains("\nb admin sha256:") && text.ends_with(" 3\n"),
            "{text}"
        );
        assert!(Keys::open(Some(&file), 1.0).is_ok());
        assert!(add_key(&file, "c", Role::Reader, Some(0.0)).is_err());
    }
}
