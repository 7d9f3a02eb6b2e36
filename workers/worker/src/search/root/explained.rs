//! The root's part in explaining: where attributes lie, the curves that judge margins, the margins of the hits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use likeness_contract::ids::WorkerId;
use likeness_contract::ranking::Candidate;
use likeness_contract::search::{Anchor, LeafAnswer, LeafAsk, Sample, SearchError, Searched};
use likeness_contract::settings::QueryEncoding;
use likeness_model::encode_query;
use tokio::time::timeout_at;

use super::{Query, too_late};
use crate::search::explain::{self, Curve};
use crate::search::fan_out::{Taken, patience_until};
use crate::search::gather::{Asked, Gather, Partial};
use crate::search::holdings::Kit;
use crate::search::query::{Input, no_model};

impl Query<'_> {
    /// The places of attributes that are explained.
    pub(super) async fn anchors(&self, kit: &Arc<Kit>, explained: &[(u32, bool)]) -> Result<Vec<Anchor>, SearchError> {
        let mut anchors = Vec::with_capacity(explained.len());
        for (attribute, _) in explained {
            let (attribute, position) = (*attribute, *attribute as usize);
            let toward = self.attributes_alone(kit, &[position], &[]).await?;
            let away = match kit.model.as_ref().ok_or_else(no_model)?.manifest.settings.encoding {
                QueryEncoding::ThreeState | QueryEncoding::LogProbability => {
                    Some(self.attributes_alone(kit, &[], &[position]).await?)
                }
                QueryEncoding::MultiHot => None,
            };
            anchors.push(Anchor { attribute, toward, away });
        }
        Ok(anchors)
    }

    async fn attributes_alone(
        &self,
        kit: &Arc<Kit>,
        with: &[usize],
        without: &[usize],
    ) -> Result<Vec<f32>, SearchError> {
        let manifest = &kit.model.as_ref().ok_or_else(no_model)?.manifest;
        let (settings, attributes) = (&manifest.settings, manifest.vocabulary.len());
        let input = Input::Attributes(encode_query(settings.encoding, attributes, with, without));
        let embedded = timeout_at(self.deadline, self.embed_term(kit, &input)).await;
        Ok(embedded.map_err(|_| too_late())??.to_vec())
    }

    /// What judges margins: remembered, or fitted now. Only the labels of all shards make one that is remembered.
    pub(super) async fn curves(&self, kit: &Kit, anchors: &[Anchor]) -> Vec<Curve> {
        let (generation, known) = (&kit.generation.generation, &self.searcher.curves);
        let unknown: Vec<Anchor> =
            anchors.iter().filter(|anchor| known.get(generation, anchor.attribute).is_none()).cloned().collect();
        let reasons = if unknown.is_empty() { String::new() } else { self.fit_curves(kit, &unknown).await };
        let missing = || Err(format!("not every shard could be asked for its labels: {reasons}"));
        let curve = |anchor: &Anchor| known.get(generation, anchor.attribute).unwrap_or_else(missing);
        anchors.iter().map(curve).collect()
    }

    /// Fits curves and remembers them, if every shard tells its labels; else tells why one did not.
    async fn fit_curves(&self, kit: &Kit, anchors: &[Anchor]) -> String {
        let all: BTreeMap<u32, u64> = kit.generation.shards.iter().map(|entry| (entry.shard, entry.rows)).collect();
        let mut gather = self.gather(kit, &BTreeSet::new());
        let rows = explain::sample_rows(kit.generation.shards.len());
        let ask = |shards: &[u32]| LeafAsk::Sample { shards: shards.to_vec(), anchors: anchors.to_vec(), rows };
        let mut samples = Vec::new();
        let take = |asked: &Asked, answer, _| match answer {
            LeafAnswer::Sample(told) if told.iter().map(|sample| sample.shard).eq(asked.shards.iter().copied()) => {
                let searched = asked.shards.iter().map(|shard| Searched::whole(*shard, all[shard])).collect();
                samples.extend(told);
                Taken::Partial(Partial { candidates: Vec::new(), searched, missing: Vec::new() })
            }
            _ => Taken::Nonsense,
        };
        self.leaves(kit).gather(&mut gather, self.fan_out_until(), ask, take).await;
        let (_, coverage) = gather.finish(0);
        if coverage.shards < coverage.total_shards {
            return coverage.reasons.join("; ");
        }
        let count = anchors.len();
        // Two that answered for the same shard count once.
        samples.sort_by_key(|sample: &Sample| sample.shard);
        samples.dedup_by_key(|sample| sample.shard);
        let fitted = tokio::task::spawn_blocking(move || explain::fit_all(count, samples)).await;
        let curves = fitted.unwrap_or_else(|panic| vec![Err(format!("it can't be fitted: {panic}")); count]);
        for (anchor, curve) in anchors.iter().zip(curves) {
            self.searcher.curves.put(&kit.generation.generation, anchor.attribute, curve);
        }
        String::new()
    }

    /// Margins per candidate and anchor, each from the leaf that found the row; an error names a leaf that failed.
    pub(super) async fn margins(
        &self,
        kit: &Kit,
        candidates: &[Candidate],
        anchors: &[Anchor],
        gather: &Gather,
    ) -> Result<Vec<f64>, WorkerId> {
        if anchors.is_empty() {
            return Ok(Vec::new());
        }
        let mut by_leaf: BTreeMap<&WorkerId, Vec<usize>> = BTreeMap::new();
        for (at, candidate) in candidates.iter().enumerate() {
            let worker = gather.answered_by(candidate.shard).expect("candidates come from answered shards");
            by_leaf.entry(worker).or_default().push(at);
        }
        let (leaves, width) = (self.leaves(kit), anchors.len());
        let until = patience_until(self.deadline).min(self.deadline);
        let asks = by_leaf.into_iter().map(|(worker, places)| {
            let rows = places.iter().map(|at| (candidates[*at].shard, candidates[*at].row)).collect();
            let ask = leaves.ask(worker, LeafAsk::Margins { rows, anchors: anchors.to_vec() }, until);
            async move {
                match timeout_at(until, ask).await {
                    Ok(Ok((LeafAnswer::Margins(margins), _))) if margins.len() == places.len() * width => {
                        Ok((places, margins))
                    }
                    _ => Err(worker.clone()),
                }
            }
        });
        let mut all = vec![0.0; candidates.len() * width];
        for answer in join_all(asks).await {
            let (places, margins) = answer?;
            for (at, margins) in places.into_iter().zip(margins.chunks_exact(width)) {
                all[at * width..][..width].copy_from_slice(margins);
            }
        }
        Ok(all)
    }
}
