//! What an alias serves: its newest release with the manifests of generation and dataset, as the store has them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use likeness_contract::documents::{DatasetManifest, GenerationManifest, Release};
use likeness_contract::ids::Name;
use likeness_contract::{keys, names};
use likeness_link::Store;

use super::problem::{Answer, Problem};

/// A newer release is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What one alias serves.
#[derive(Debug)]
pub struct Served {
    /// The release.
    pub release: Release,
    /// Its generation.
    pub generation: GenerationManifest,
    /// The dataset with its images; none of embeddings from elsewhere.
    pub dataset: Option<DatasetManifest>,
}

/// What aliases serve.
#[derive(Debug)]
pub struct ServedAliases {
    store: Store,
    known: Mutex<HashMap<Name, (Instant, Arc<Served>)>>,
}

impl ServedAliases {
    /// Of a store.
    pub fn new(store: Store) -> Self {
        Self { store, known: Mutex::default() }
    }

    /// What an alias serves; a wrong name is answered with the nearest ones.
    pub async fn of(&self, alias: &Name) -> Answer<Arc<Served>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(alias).cloned();
        if let Some((at, served)) = &known
            && at.elapsed() < LOOK_EVERY
        {
            return Ok(served.clone());
        }
        let newest = self.store.list(&keys::releases(alias)).await?.iter().filter_map(|key| keys::number_of(key)).max();
        let Some(number) = newest else { return Err(self.unknown(alias).await) };
        let served = match known {
            Some((_, served)) if served.release.number == number => served,
            _ => Arc::new(self.read(alias, number).await?),
        };
        let entry = (Instant::now(), served.clone());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(alias.clone(), entry);
        Ok(served)
    }

    async fn read(&self, alias: &Name, number: u64) -> Answer<Served> {
        let release: Release = self.store.require(&keys::release(alias, number)).await?;
        let at = keys::generation_manifest(&release.generation.gallery, &release.generation.generation);
        let generation: GenerationManifest = self.store.require(&at).await?;
        let dataset = match generation.dataset() {
            Some(dataset) => self.store.document(&keys::dataset_manifest(&dataset.dataset, &dataset.version)).await?,
            None => None,
        };
        Ok(Served { release, generation, dataset })
    }

    async fn unknown(&self, alias: &Name) -> Problem {
        let known = self.store.children(keys::RELEASES).await.unwrap_or_default();
        let nearest = names::nearest(alias.as_str(), known.iter().map(String::as_str));
        Problem::not_found(format!("alias `{alias}` has no release{}", names::hint(&nearest))).nearest(nearest)
    }
}
