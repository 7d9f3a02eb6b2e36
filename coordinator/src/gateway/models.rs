//! Models, and how their trainings went.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use likeness_contract::documents::ModelManifest;
use likeness_contract::ids::JobId;
use likeness_contract::{keys, names};
use likeness_link::rows::Rows;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::Gateway;
use super::extract::{At, reply};
use super::problem::{Answer, Problem};
use crate::command::models;

/// Points of a curve: steps in between are left out.
const MAX_POINTS: usize = 400;

/// A model with the aliases that serve it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServingModel {
    /// The model.
    model: ModelManifest,
    /// Aliases whose newest release it is.
    serves: Vec<String>,
}

/// All models.
pub async fn list(State(gateway): State<Gateway>) -> Answer<Json<Vec<ServingModel>>> {
    let all = models::all(gateway.client().store()).await?;
    reply(all.into_iter().map(|models::Listed { manifest, serves }| ServingModel { model: manifest, serves }).collect())
}

/// One model.
pub async fn show(State(gateway): State<Gateway>, At(model): At<JobId>) -> Answer<Json<ModelManifest>> {
    reply(find(&gateway, &model).await?)
}

async fn find(gateway: &Gateway, model: &JobId) -> Answer<ModelManifest> {
    let store = gateway.client().store();
    if let Some(manifest) = store.document(&keys::model_manifest(model)).await? {
        return Ok(manifest);
    }
    let known = store.children(keys::MODELS).await?;
    let nearest = names::nearest(model.as_str(), known.iter().map(String::as_str));
    Err(Problem::not_found(format!("there is no model `{model}`{}", names::hint(&nearest))).nearest(nearest))
}

/// Figures of a training by phase and name, one value a step.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Training {
    /// `train` and `validation`; in each, columns of equal length: `step`, `loss`, `easy`, `semi_hard`, `hard`, `correct`, `dp_mean`,
    /// `dn_mean`, `lr`, and `dp_histogram`, `dn_histogram` with counts in 20 bins over 0–2.
    phases: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
}

/// The curves of a training.
pub async fn training(State(gateway): State<Gateway>, At(model): At<JobId>) -> Answer<Json<Training>> {
    let manifest = find(&gateway, &model).await?;
    let bytes = gateway.client().store().read(&manifest.training).await?;
    let rows = Rows::of(&manifest.training.key, bytes)?;
    let mut phases: BTreeMap<String, Vec<serde_json::Map<String, Value>>> = BTreeMap::new();
    for row in rows {
        let mut row = row?;
        if let Some(Value::String(phase)) = row.remove("phase") {
            phases.entry(phase).or_default().push(row);
        }
    }
    reply(Training { phases: phases.into_iter().map(|(phase, rows)| (phase, columns(rows))).collect() })
}

/// Every so many rows, and the last.
fn columns(rows: Vec<serde_json::Map<String, Value>>) -> BTreeMap<String, Vec<Value>> {
    let (last, every) = (rows.len().saturating_sub(1), rows.len().div_ceil(MAX_POINTS).max(1));
    let mut columns: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (_, row) in rows.into_iter().enumerate().filter(|(at, _)| at % every == 0 || *at == last) {
        for (name, value) in row {
            columns.entry(name).or_default().push(value);
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_keep_their_ends() {
        let row = |step: u64| serde_json::Map::from_iter([("step".to_string(), Value::from(step))]);
        let steps = columns((0..1003).map(row).collect()).remove("step").unwrap();
        assert!(steps.len() <= MAX_POINTS && steps.first() == Some(&0.into()) && steps.last() == Some(&1002.into()));
        assert_eq!(columns((0..3).map(row).collect())["step"].len(), 3);
        assert!(columns(Vec::new()).is_empty());
    }
}
