//! Where NATS and the store are: flag > environment > the `likeness up` of this folder > default.

use std::path::{Path, PathBuf};

use clap::Args;
use likeness_link::client::Client;
use likeness_link::settings::{NatsSettings, Timings};
use likeness_link::{Bus, Store};

use crate::command::exit::{Failure, Outcome};
use crate::command::up::state::{self, UpState};

/// NATS server without any setting.
pub const DEFAULT_NATS: &str = "nats://127.0.0.1:4222";
/// Store without any setting.
pub const DEFAULT_STORE: &str = "./likeness-store";
/// Folder of `likeness up` without a name.
pub const DEFAULT_UP_DIR: &str = "./likeness-data";

/// Flags of every command that talks to the system.
#[derive(Debug, Clone, Default, Args)]
pub struct Connection {
    /// NATS server [env: LIKENESS_NATS] [default: that of `likeness up` in this folder, else nats://127.0.0.1:4222]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub nats: Option<String>,
    /// Object store: a folder, or file://, s3://, gs://, az:// URL [env: LIKENESS_STORE] [default: that of `likeness up` in this folder, else ./likeness-store]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub store: Option<String>,
    /// NATS credentials file [env: LIKENESS_CREDENTIALS]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub credentials: Option<PathBuf>,
    /// Certificate authority of the NATS server, PEM: with it only TLS will do [env: LIKENESS_NATS_CA]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub nats_ca: Option<PathBuf>,
    /// Talk to the `likeness up` that runs in this folder.
    #[arg(long, global = true, value_name = "DIR", help_heading = "Connection")]
    pub up: Option<PathBuf>,
}

/// Resolved addresses.
#[derive(Debug, Clone)]
pub struct Address {
    /// How to reach NATS.
    pub nats: NatsSettings,
    /// The store's URL or folder.
    pub store: String,
}

impl Connection {
    /// Finds the addresses.
    pub fn resolve(&self) -> Outcome<Address> {
        let running = match &self.up {
            Some(dir) => Some(running_in(dir)?),
            None => None,
        };
        let found = || [DEFAULT_UP_DIR, "."].iter().find_map(|dir| state::running(Path::new(dir)));
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.resolve_with(running, env, found)
    }

    fn resolve_with(
        &self,
        named: Option<UpState>,
        env: impl Fn(&str) -> Option<String>,
        found: impl Fn() -> Option<UpState>,
    ) -> Outcome<Address> {
        let nats =
            self.nats.clone().or_else(|| named.as_ref().map(|up| up.nats.clone())).or_else(|| env("LIKENESS_NATS"));
        let store =
            self.store.clone().or_else(|| named.as_ref().map(|up| up.store.clone())).or_else(|| env("LIKENESS_STORE"));
        // Addresses of one system belong together: what runs here is taken as a whole or not at all.
        let here = if nats.is_none() && store.is_none() { found() } else { None };
        let (here_nats, here_store) = here.map(|up| (up.nats, up.store)).unzip();
        let credentials = self.credentials.clone().or_else(|| env("LIKENESS_CREDENTIALS").map(PathBuf::from));
        Ok(Address {
            nats: NatsSettings {
                url: nats.or(here_nats).unwrap_or_else(|| DEFAULT_NATS.into()),
                credentials,
                ca: self.nats_ca.clone().or_else(|| env("LIKENESS_NATS_CA").map(PathBuf::from)),
                timings: Timings::from_env()?,
            },
            store: store.or(here_store).unwrap_or_else(|| DEFAULT_STORE.into()),
        })
    }

    /// Connects to both.
    pub async fn client(&self) -> Outcome<Client> {
        let address = self.resolve()?;
        let (bus, store) =
            tokio::join!(Bus::connect(&address.nats, "likeness-command"), Store::open_existing(&address.store));
        // The more telling error first: a wrong address of NATS is no question of the store.
        let (bus, store) = (bus?, store?);
        Ok(Client::over(bus, store))
    }

    /// Refuses addresses for a command that starts a system of its own.
    pub fn none_for(&self, command: &str) -> Outcome<()> {
        let Self { nats, store, credentials, nats_ca, up } = self;
        let given = [
            ("--nats", nats.is_some()),
            ("--store", store.is_some()),
            ("--credentials", credentials.is_some()),
            ("--nats-ca", nats_ca.is_some()),
            ("--up", up.is_some()),
        ];
        let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) else { return Ok(()) };
        Err(Failure::usage(format!(
            "`likeness {command}` starts its own NATS server and store, so {flag} has no meaning: leave it out, or start \
             `likeness coordinator` and `likeness-worker` with your addresses"
        )))
    }
}

fn running_in(dir: &Path) -> Outcome<UpState> {
    state::running(dir).ok_or_else(|| {
        Failure::unavailable(format!("no `likeness up` runs in `{}`: start it with `likeness up {0}`", dir.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(name: &str) -> UpState {
        UpState { nats: format!("nats://{name}"), store: format!("/{name}"), ..UpState::for_tests() }
    }

    fn addresses(
        connection: &Connection,
        named: Option<UpState>,
        env: &[(&str, &str)],
        found: Option<UpState>,
    ) -> (String, String) {
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        let address = connection.resolve_with(named, env, || found.clone()).unwrap();
        (address.nats.url, address.store)
    }

    #[test]
    fn flag_wins_over_environment_over_folder_over_default() {
        let none = Connection::default();
        let flag = Connection { nats: Some("nats://flag".into()), ..Connection::default() };
        let env = [("LIKENESS_NATS", "nats://env"), ("LIKENESS_STORE", "/env")];
        assert_eq!(addresses(&flag, None, &env, None), ("nats://flag".into(), "/env".into()));
        assert_eq!(addresses(&none, None, &env, Some(up("here"))), ("nats://env".into(), "/env".into()));
        assert_eq!(addresses(&none, None, &[], Some(up("here"))), ("nats://here".into(), "/here".into()));
        assert_eq!(addresses(&none, None, &[], None), (DEFAULT_NATS.into(), DEFAULT_STORE.into()));
    }

    #[test]
    fn a_folder_that_is_named_wins_over_the_environment() {
        let env = [("LIKENESS_NATS", "nats://env"), ("LIKENESS_STORE", "/env")];
        let found = addresses(&Connection::default(), Some(up("named")), &env, None);
        assert_eq!(found, ("nats://named".into(), "/named".into()));
    }

    #[test]
    fn addresses_of_two_systems_are_never_mixed() {
        let flag = Connection { nats: Some("nats://flag".into()), ..Connection::default() };
        assert_eq!(addresses(&flag, None, &[], Some(up("here"))).1, DEFAULT_STORE);
    }

    #[test]
    fn addresses_for_a_system_of_its_own_are_refused() {
        assert!(Connection::default().none_for("up").is_ok());
        for connection in [
            Connection { nats: Some("nats://foo:1".into()), ..Connection::default() },
            Connection { store: Some("/x".into()), ..Connection::default() },
            Connection { credentials: Some("/x".into()), ..Connection::default() },
            Connection { up: Some("/x".into()), ..Connection::default() },
        ] {
            let failure = connection.none_for("up").unwrap_err();
            assert_eq!(failure.exit as u8, 64);
            assert!(failure.to_string().contains("starts its own"), "{failure}");
        }
    }

    #[test]
    fn a_folder_without_up_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection { up: Some(dir.path().into()), ..Connection::default() };
        assert_eq!(connection.resolve().unwrap_err().exit as u8, 69);
    }
}
