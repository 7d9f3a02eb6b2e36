//! Searches: the JSON of the NATS service, one at a time or many, and with an uploaded image.

use axum::Json;
use axum::extract::multipart::{Field, MultipartRejection};
use axum::extract::{Multipart, State};
use futures::StreamExt;
use likeness_contract::ids::Name;
use likeness_contract::search::{SearchRequest, SearchResults, Term, WeightedTerm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Gateway;
use super::extract::{At, Body, json, reply, too_large};
use super::problem::{Answer, Problem};
use crate::command::shrink;

/// Questions of a batch that are asked at once.
const AT_ONCE: usize = 16;
/// Most questions of a batch; a file of more is a job (`likeness search --batch`).
const MAX_BATCH: usize = 256;

/// Asks one question.
pub async fn search(State(gateway): State<Gateway>, Body(request): Body<SearchRequest>) -> Answer<Json<SearchResults>> {
    reply(ask(&gateway, request).await?)
}

async fn ask(gateway: &Gateway, mut request: SearchRequest) -> Answer<SearchResults> {
    for WeightedTerm { term, .. } in &mut request.terms {
        if let Term::Image { bytes } = term {
            *bytes = shrunk(gateway, std::mem::take(bytes)).await?;
        }
    }
    Ok(gateway.client().search(&request).await?)
}

/// An image as it travels. Decoding is no work for a thread that talks, and takes memory: so not many at once.
async fn shrunk(gateway: &Gateway, bytes: Vec<u8>) -> Answer<Vec<u8>> {
    let permit = gateway.decoding.clone().acquire_owned().await;
    let shrunk = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        shrink::shrink(bytes)
    });
    let shrunk = shrunk.await.map_err(|_| Problem::internal("an image could not be decoded"))?;
    shrunk.map_err(|error| Problem::invalid(format!("can't use the image: {error}")))
}

/// Questions that are asked together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// At most 256.
    #[schemars(length(max = 256))]
    queries: Vec<SearchRequest>,
}

/// The answers to a batch, in its order.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchAnswers {
    /// One of every question.
    answers: Vec<BatchAnswer>,
}

/// The answer to one question of a batch.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BatchAnswer {
    /// Results.
    Found(Box<SearchResults>),
    /// None, and why.
    Error(Problem),
}

/// Asks many.
pub async fn batch(State(gateway): State<Gateway>, Body(Batch { queries }): Body<Batch>) -> Answer<Json<BatchAnswers>> {
    if queries.len() > MAX_BATCH {
        let detail =
            format!("{} questions are more than {MAX_BATCH}: `likeness search --batch` asks a file", queries.len());
        return Err(Problem::invalid(detail));
    }
    let ask = |request| {
        let gateway = gateway.clone();
        async move {
            match ask(&gateway, request).await {
                Ok(results) => BatchAnswer::Found(Box::new(results)),
                Err(problem) => BatchAnswer::Error(problem),
            }
        }
    };
    let answers = futures::stream::iter(queries).map(ask).buffered(AT_ONCE).collect().await;
    reply(BatchAnswers { answers })
}

/// An image as a file, and what else is asked.
#[derive(Debug, JsonSchema)]
#[allow(dead_code, reason = "the form is read field by field; this describes it")]
pub struct ImageForm {
    /// JPEG, PNG or WebP of any size that the gateway takes; it is shrunk before it travels.
    #[schemars(extend("contentMediaType" = "application/octet-stream"))]
    image: String,
    /// The weight of the image beside the terms of the request; 1 without.
    #[schemars(default, with = "f32")]
    weight: f32,
    /// The rest of the question; the image is added to its terms.
    #[schemars(default, with = "Option<SearchRequest>")]
    request: Option<String>,
}

/// Asks with an uploaded image.
pub async fn with_image(
    State(gateway): State<Gateway>,
    form: Result<Multipart, MultipartRejection>,
) -> Answer<Json<SearchResults>> {
    let mut form = form.map_err(|rejection| Problem::malformed(rejection.body_text()))?;
    let (mut image, mut weight, mut request) = (None, 1.0, None);
    while let Some(field) = form.next_field().await.map_err(of_multipart)? {
        match field.name().unwrap_or_default() {
            "image" => image = Some(read(field).await?),
            "weight" => weight = number(&read(field).await?)?,
            "request" => request = Some(json::<SearchRequest>(&read(field).await?)?),
            other => {
                let detail = format!("the form has a field `{other}`: `image`, `weight` and `request` are known");
                return Err(Problem::invalid(detail));
            }
        }
    }
    let bytes = image.ok_or_else(|| Problem::invalid("the form has no field `image` with a file"))?;
    let mut request = match request {
        Some(request) => request,
        None => json(b"{}")?,
    };
    request.terms.push(WeightedTerm { weight, term: Term::Image { bytes } });
    reply(ask(&gateway, request).await?)
}

async fn read(field: Field<'_>) -> Answer<Vec<u8>> {
    Ok(field.bytes().await.map_err(of_multipart)?.into())
}

fn of_multipart(error: axum::extract::multipart::MultipartError) -> Problem {
    if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
        return too_large();
    }
    Problem::malformed(error.body_text())
}

fn number(bytes: &[u8]) -> Answer<f32> {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| text.trim().parse::<f32>().ok());
    text.filter(|weight| weight.is_finite()).ok_or_else(|| Problem::invalid("the field `weight` is no number"))
}

/// The attributes that an alias can be asked for.
#[derive(Debug, Serialize, JsonSchema)]
pub struct VocabularyReply {
    /// The alias.
    alias: Name,
    /// Its newest release.
    release: u64,
    /// Attributes by position, as in the labels of hits.
    attributes: Vec<String>,
    /// Images in the gallery, removed ones included.
    rows: u64,
    /// Whether attributes and images can be asked for: not of embeddings from elsewhere.
    embeds: bool,
}

/// The attributes of an alias.
pub async fn vocabulary(State(gateway): State<Gateway>, At(alias): At<Name>) -> Answer<Json<VocabularyReply>> {
    let served = gateway.served.of(&alias).await?;
    reply(VocabularyReply {
        alias,
        release: served.release.number,
        attributes: served.generation.vocabulary.names.clone(),
        rows: served.generation.total_rows(),
        embeds: served.generation.embedder().is_some(),
    })
}
