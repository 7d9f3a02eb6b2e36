//! From a request to a query vector: what is refused, how terms are embedded, how they are summed.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Tensor;
use likeness_contract::names;
use likeness_contract::ranking::MAX_K;
use likeness_contract::search::{
    Cursor, LabelFilter, MAX_QUERY_IMAGE_BYTES, MAX_QUERY_IMAGE_PX, SearchError, SearchErrorKind, SearchRequest, Term,
    WeightedTerm,
};
use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding, Vocabulary};
use likeness_data::Loader;
use likeness_model::encode_query;

use super::explain;
use crate::cache::LoadedModel;
use crate::error::TaskError;
use crate::runtime::device::DeviceThread;

/// Most terms of a request.
pub const MAX_TERMS: usize = 64;
/// A sum of terms whose norm is below this share of the weights has no direction: only rounding is left.
const SMALLEST_NORM: f64 = 1e-6;

/// A term that was checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Input of the attribute tower, (A).
    Attributes(Vec<f32>),
    /// A file that is to be decoded.
    Image(Vec<u8>),
    /// An item of the gallery.
    Item(String),
    /// A vector of dimension D that is not zero.
    Vector(Vec<f32>),
}

/// A request that was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Weights and terms.
    pub terms: Vec<(f32, Input)>,
    /// Results wanted.
    pub k: usize,
    /// Known labels that results have: positions in the vocabulary, and whether it is there.
    pub filter: Vec<(u32, bool)>,
    /// See [`SearchRequest::recall`].
    pub recall: Option<f64>,
    /// Attributes that are explained: positions, and whether they are asked to be there.
    pub explain: Vec<(u32, bool)>,
}

impl Question {
    /// Items that are asked for by name: they are left out of the answer.
    pub fn items(&self) -> BTreeSet<String> {
        let item = |term: &(f32, Input)| match &term.1 {
            Input::Item(item) => Some(item.clone()),
            _ => None,
        };
        self.terms.iter().filter_map(item).collect()
    }
}

/// Where an answer goes on, and what it is an answer to.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Unit vector of dimension D.
    pub vector: Vec<f32>,
    /// Results wanted.
    pub k: usize,
    /// See [`Question::filter`].
    pub filter: Vec<(u32, bool)>,
    /// See [`SearchRequest::recall`].
    pub recall: Option<f64>,
    /// Items that are no results.
    pub left_out: BTreeSet<String>,
    /// See [`Question::explain`].
    pub explain: Vec<(u32, bool)>,
    /// The last result of the page before: its rank from 1, its d² and its item.
    pub after: Option<(usize, f64, String)>,
}

impl Wanted {
    /// Ranks that must be known.
    pub fn depth(&self) -> usize {
        let answered = self.after.as_ref().map_or(0, |(answered, ..)| *answered);
        (answered + self.k).min(MAX_K)
    }

    /// What a cursor stands for; fails for one that does not fit the generation that it names.
    pub fn of_cursor(cursor: &Cursor, k: u32, vocabulary: usize, dim: usize) -> Result<Self, SearchError> {
        let Cursor { vector, left_out, filter, recall, answered, d2, item, explain, .. } = cursor;
        let answered = *answered as usize;
        let sound = vector.len() == dim
            && vector.iter().all(|value| value.is_finite())
            && filter.iter().chain(explain).all(|(attribute, _)| (*attribute as usize) < vocabulary)
            && (explain.is_empty() || explain::check(explain.len(), dim).is_ok())
            && recall.is_none_or(|recall| (0.0..=1.0).contains(&recall))
            && left_out.len() <= MAX_TERMS
            && answered < MAX_K
            && d2.is_finite();
        if !sound {
            return Err(invalid("the cursor does not fit its release: it was changed"));
        }
        Ok(Self {
            vector: vector.clone(),
            k: k as usize,
            filter: filter.clone(),
            recall: *recall,
            left_out: left_out.iter().cloned().collect(),
            explain: explain.clone(),
            after: Some((answered, *d2, item.clone())),
        })
    }
}

/// Reads a request's cursor, and checks what is said beside it.
pub fn cursor(request: &SearchRequest, text: &str) -> Result<Cursor, SearchError> {
    let SearchRequest { alias, terms, k, min_coverage, deadline_ms: _, filter, recall, paged: _, cursor: _, explain } =
        request;
    check_numbers(*k, *min_coverage, *recall)?;
    if !terms.is_empty() || !filter.is_empty() || recall.is_some() || *explain {
        return Err(invalid("a cursor stands for its question: terms, filter, recall and explain are not said again"));
    }
    let cursor = Cursor::from_text(text).map_err(|error| invalid(format!("the cursor can't be used: {error}")))?;
    if cursor.alias != *alias {
        return Err(invalid(format!("the cursor is of alias `{}`, not of `{alias}`", cursor.alias)));
    }
    Ok(cursor)
}

/// The error for a request that can't be met as it is.
pub fn invalid(message: impl Into<String>) -> SearchError {
    SearchError { kind: SearchErrorKind::Invalid, message: message.into(), nearest: Vec::new() }
}

/// What questions are checked against. Of embeddings from elsewhere only the dimension says anything, since [`check_kinds`] lets
/// nothing through that a tower would have to embed.
pub fn settings(model: Option<&LoadedModel>, dim: u32) -> ModelSettings {
    match model {
        Some(model) => model.manifest.settings.clone(),
        None => ModelSettings {
            architecture: Architecture::CnnS,
            embedding_dim: dim,
            encoding: QueryEncoding::ThreeState,
            preprocessing: Preprocessing::imagenet(64),
        },
    }
}

/// Refuses terms that a model would have to embed where there is none.
pub fn check_kinds(request: &SearchRequest, has_model: bool) -> Result<(), SearchError> {
    let embeds = |term: &WeightedTerm| matches!(term.term, Term::Attributes { .. } | Term::Image { .. });
    if has_model || !request.terms.iter().any(embeds) {
        return Ok(());
    }
    Err(no_model())
}

/// The error for a term that nothing can embed.
pub fn no_model() -> SearchError {
    invalid(
        "this release serves embeddings that were made elsewhere: there is no model to embed attributes or images with; \
         ask by a stored item or a vector, and by known labels",
    )
}

/// Checks a request against the model that will embed it.
pub fn check(
    request: &SearchRequest,
    vocabulary: &Vocabulary,
    settings: &ModelSettings,
) -> Result<Question, SearchError> {
    // The alias was looked up, and the deadline runs already.
    let SearchRequest {
        alias: _,
        terms: asked,
        k,
        min_coverage,
        deadline_ms: _,
        filter,
        recall,
        paged: _,
        cursor: _,
        explain,
    } = request;
    check_numbers(*k, *min_coverage, *recall)?;
    if !(1..=MAX_TERMS).contains(&asked.len()) {
        return Err(invalid(format!("{} terms, expected 1–{MAX_TERMS}", asked.len())));
    }
    let terms = asked.iter().map(|term| check_term(term, vocabulary, settings)).collect::<Result<_, _>>()?;
    let explain = match explain {
        true => explained(asked, vocabulary, settings.embedding_dim as usize)?,
        false => Vec::new(),
    };
    Ok(Question { terms, k: *k as usize, filter: known_labels(filter, vocabulary)?, recall: *recall, explain })
}

/// The attributes that terms ask for, each once in the order of asking; whether to be there, the sum of the weights tells.
fn explained(terms: &[WeightedTerm], vocabulary: &Vocabulary, dim: usize) -> Result<Vec<(u32, bool)>, SearchError> {
    let mut asked: Vec<(usize, f64)> = Vec::new();
    for WeightedTerm { weight, term } in terms {
        let Term::Attributes { with, without } = term else { continue };
        for (lists, weight) in [(with, f64::from(*weight)), (without, -f64::from(*weight))] {
            for position in positions(lists, vocabulary)? {
                match asked.iter_mut().find(|(known, _)| *known == position) {
                    Some((_, sum)) => *sum += weight,
                    None => asked.push((position, weight)),
                }
            }
        }
    }
    asked.retain(|(_, sum)| *sum != 0.0);
    explain::check(asked.len(), dim)?;
    Ok(asked.into_iter().map(|(position, sum)| (position as u32, sum > 0.0)).collect())
}

fn check_numbers(k: u32, min_coverage: f64, recall: Option<f64>) -> Result<(), SearchError> {
    if !(1..=MAX_K).contains(&(k as usize)) {
        return Err(invalid(format!("k is {k}, expected 1–{MAX_K}")));
    }
    if !(0.0..=1.0).contains(&min_coverage) {
        return Err(invalid(format!("min_coverage is {min_coverage}, expected 0–1")));
    }
    match recall {
        Some(recall) if !(0.0..=1.0).contains(&recall) => Err(invalid(format!("recall is {recall}, expected 0–1"))),
        _ => Ok(()),
    }
}

/// Conditions on known labels, each once, in the order of the vocabulary.
fn known_labels(filter: &LabelFilter, vocabulary: &Vocabulary) -> Result<Vec<(u32, bool)>, SearchError> {
    let (with, without) = (positions(&filter.with, vocabulary)?, positions(&filter.without, vocabulary)?);
    if let Some(both) = with.iter().find(|position| without.contains(position)) {
        return Err(invalid(format!("nothing both has and has not `{}`", vocabulary.names[*both])));
    }
    let condition = |has: bool| move |position: &usize| (*position as u32, has);
    let mut all: Vec<_> = with.iter().map(condition(true)).chain(without.iter().map(condition(false))).collect();
    all.sort_unstable();
    Ok(all)
}

fn check_term(
    term: &WeightedTerm,
    vocabulary: &Vocabulary,
    settings: &ModelSettings,
) -> Result<(f32, Input), SearchError> {
    let WeightedTerm { weight, term } = term;
    if !weight.is_finite() || *weight == 0.0 {
        return Err(invalid(format!("a term has the weight {weight}, expected a number other than 0")));
    }
    let input = match term {
        Term::Attributes { with, without } => attributes(with, without, vocabulary, settings.encoding)?,
        Term::Image { bytes } => image(bytes)?,
        Term::Item { item } => Input::Item(item.clone()),
        Term::Vector { values } => vector(values, settings.embedding_dim as usize)?,
    };
    Ok((*weight, input))
}

fn attributes(
    with: &[String],
    without: &[String],
    vocabulary: &Vocabulary,
    encoding: QueryEncoding,
) -> Result<Input, SearchError> {
    let (with, without) = (positions(with, vocabulary)?, positions(without, vocabulary)?);
    if with.is_empty() && without.is_empty() {
        return Err(invalid("a term of attributes names none"));
    }
    if let Some(both) = with.iter().find(|position| without.contains(position)) {
        return Err(invalid(format!("`{}` is asked for and against at once", vocabulary.names[*both])));
    }
    if encoding == QueryEncoding::MultiHot && !without.is_empty() {
        let name = &vocabulary.names[without[0]];
        return Err(invalid(format!(
            "this model's multi-hot queries can't say \"without `{name}`\": give a term with it and a negative weight"
        )));
    }
    Ok(Input::Attributes(encode_query(encoding, vocabulary.len(), &with, &without)))
}

/// Each attribute once, in the order of asking.
fn positions(lists: &[String], vocabulary: &Vocabulary) -> Result<Vec<usize>, SearchError> {
    let mut all = Vec::new();
    for list in lists {
        for position in vocabulary.positions(list).map_err(|name| unknown(name, vocabulary))? {
            if !all.contains(&position) {
                all.push(position);
            }
        }
    }
    Ok(all)
}

fn unknown(name: &str, vocabulary: &Vocabulary) -> SearchError {
    let nearest = names::nearest(name, vocabulary.names.iter().map(String::as_str));
    let name: String = name.chars().take(60).collect();
    let known = match nearest.as_slice() {
        [] => "; `likeness datasets show NAME` lists those of a dataset".to_string(),
        nearest => names::hint(nearest),
    };
    SearchError { kind: SearchErrorKind::NotFound, message: format!("unknown attribute `{name}`{known}"), nearest }
}

fn image(bytes: &[u8]) -> Result<Input, SearchError> {
    if bytes.len() > MAX_QUERY_IMAGE_BYTES {
        let (size, limit) = (bytes.len(), MAX_QUERY_IMAGE_BYTES);
        return Err(invalid(format!(
            "the image has {size} bytes, at most {limit} are taken: shrink it to {MAX_QUERY_IMAGE_PX} px"
        )));
    }
    Ok(Input::Image(bytes.to_vec()))
}

fn vector(values: &[f32], dim: usize) -> Result<Input, SearchError> {
    if values.len() != dim {
        return Err(invalid(format!("the vector has {} values, the model's dimension is {dim}", values.len())));
    }
    if !values.iter().all(|value| value.is_finite()) || values.iter().all(|value| *value == 0.0) {
        return Err(invalid("the vector is zero or not finite"));
    }
    Ok(Input::Vector(unit(&values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())))
}

/// Weighted sum of unit vectors (each D), normalised.
pub fn combine(terms: &[(f32, Arc<[f32]>)]) -> Result<Vec<f32>, SearchError> {
    let dim = terms.first().map_or(0, |(_, vector)| vector.len());
    let mut sum = vec![0f64; dim];
    for (weight, vector) in terms {
        for (sum, value) in sum.iter_mut().zip(vector.iter()) {
            *sum += f64::from(*weight) * f64::from(*value);
        }
    }
    let weights: f64 = terms.iter().map(|(weight, _)| f64::from(weight.abs())).sum();
    if norm(&sum) <= SMALLEST_NORM * weights {
        return Err(invalid("the terms cancel each other out: no direction is left to search in"));
    }
    Ok(unit(&sum))
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn unit(values: &[f64]) -> Vec<f32> {
    let norm = norm(values);
    values.iter().map(|value| (value / norm) as f32).collect()
}

/// Through the attribute tower: (A) → (D).
pub async fn embed_attributes(
    device: &DeviceThread,
    model: Arc<LoadedModel>,
    vector: Vec<f32>,
) -> Result<Vec<f32>, TaskError> {
    let embed = move |device: &candle_core::Device| {
        let width = vector.len();
        let input = Tensor::from_vec(vector, (1, width), device)?;
        Ok(model.model.embed_attributes(&input)?.flatten_all()?.to_vec1::<f32>()?)
    };
    device.run(embed).await
}

/// Through the image tower: pixels `(3, px, px)` → (D).
pub async fn embed_pixels(
    device: &DeviceThread,
    model: Arc<LoadedModel>,
    pixels: Vec<f32>,
) -> Result<Vec<f32>, TaskError> {
    let embed = move |device: &candle_core::Device| {
        let px = model.manifest.settings.preprocessing.input_px as usize;
        let input = Tensor::from_vec(pixels, (1, 3, px, px), device)?;
        Ok(model.model.embed_images(&input)?.flatten_all()?.to_vec1::<f32>()?)
    };
    device.run(embed).await
}

/// Decodes an image into the model's input `(3, px, px)`; compute, not for tokio's threads.
pub fn pixels(model: &LoadedModel, bytes: &[u8]) -> Result<Vec<f32>, SearchError> {
    let loader = Loader::new(&model.manifest.settings.preprocessing);
    let mut pixels = vec![0.0; loader.input_len()];
    loader.load(bytes, &mut pixels).map_err(|error| invalid(format!("the image can't be used: {error}")))?;
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::Name;
    use likeness_contract::settings::{Architecture, Preprocessing};

    use super::*;

    fn vocabulary() -> Vocabulary {
        Vocabulary { names: ["Smiling", "Male", "Eyeglasses"].map(String::from).to_vec() }
    }

    fn settings(encoding: QueryEncoding) -> ModelSettings {
        let preprocessing = Preprocessing::imagenet(64);
        ModelSettings { architecture: Architecture::CnnS, embedding_dim: 2, encoding, preprocessing }
    }

    fn request(terms: Vec<(f32, Term)>) -> SearchRequest {
        let terms = terms.into_iter().map(|(weight, term)| WeightedTerm { weight, term }).collect();
        SearchRequest::new(Name::new("a").unwrap(), terms, 10)
    }

    fn asked(with: &[&str], without: &[&str]) -> Term {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Term::Attributes { with: names(with), without: names(without) }
    }

    fn refusal(request: &SearchRequest) -> (SearchErrorKind, String) {
        let error = check(request, &vocabulary(), &settings(QueryEncoding::ThreeState)).unwrap_err();
        (error.kind, error.message)
    }

    #[test]
    fn what_cannot_be_met_is_refused_with_its_reason() {
        let term = |term| refusal(&request(vec![(1.0, term)]));
        let invalid = |message: &str| (SearchErrorKind::Invalid, message.to_string());
        assert_eq!(refusal(&request(vec![])), invalid("0 terms, expected 1–64"));
        assert_eq!(term(asked(&[], &[])), invalid("a term of attributes names none"));
        assert_eq!(term(asked(&["smiling"], &["Smiling"])), invalid("`Smiling` is asked for and against at once"));
        let unknown = "unknown attribute `Smilling`; did you mean `Smiling`?";
        assert_eq!(term(asked(&["Smilling"], &[])), (SearchErrorKind::NotFound, unknown.to_string()));
        assert_eq!(term(asked(&["Male,Smilling"], &[])), (SearchErrorKind::NotFound, unknown.to_string()));
        assert!(term(asked(&["Zzzz"], &[])).1.contains("`likeness datasets show NAME`"));
        let vector = |values: &[f32]| term(Term::Vector { values: values.to_vec() });
        assert_eq!(vector(&[1.0]), invalid("the vector has 1 values, the model's dimension is 2"));
        assert_eq!(vector(&[0.0, 0.0]), invalid("the vector is zero or not finite"));
        assert_eq!(vector(&[f32::NAN, 0.0]), invalid("the vector is zero or not finite"));
        assert!(term(Term::Image { bytes: vec![0; MAX_QUERY_IMAGE_BYTES + 1] }).1.contains("at most 262144 are taken"));
        for weight in [0.0, f32::NAN, f32::INFINITY] {
            assert!(refusal(&request(vec![(weight, asked(&["Male"], &[]))])).1.contains("weight"));
        }
        for k in [0, 10_001] {
            let request = SearchRequest { k, ..request(vec![(1.0, asked(&["Male"], &[]))]) };
            assert_eq!(refusal(&request), invalid(&format!("k is {k}, expected 1–10000")));
        }
        for min_coverage in [-0.1, 1.1, f64::NAN] {
            let request = SearchRequest { min_coverage, ..request(vec![(1.0, asked(&["Male"], &[]))]) };
            assert!(refusal(&request).1.starts_with("min_coverage"));
        }
    }

    #[test]
    fn a_filter_names_known_attributes() {
        let filtered = |with: &[&str], without: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
            let filter = LabelFilter { with: names(with), without: names(without) };
            SearchRequest { filter, ..request(vec![(1.0, asked(&["Male"], &[]))]) }
        };
        let settings = settings(QueryEncoding::MultiHot);
        let question =
            check(&filtered(&["eyeglasses,Smiling", "Smiling"], &["male"]), &vocabulary(), &settings).unwrap();
        assert_eq!(question.filter, [(0, true), (1, false), (2, true)]);
        let unknown = "unknown attribute `Smilling`; did you mean `Smiling`?";
        assert_eq!(refusal(&filtered(&[], &["Smilling"])), (SearchErrorKind::NotFound, unknown.to_string()));
        let both = refusal(&filtered(&["Male"], &["male"]));
        assert_eq!(both, (SearchErrorKind::Invalid, "nothing both has and has not `Male`".to_string()));
    }

    #[test]
    fn what_terms_ask_for_is_explained_once_and_by_the_sum_of_the_weights() {
        let settings = settings(QueryEncoding::ThreeState);
        let explained = |terms: Vec<(f32, Term)>| {
            let request = SearchRequest { explain: true, ..request(terms) };
            check(&request, &vocabulary(), &settings).map(|question| question.explain)
        };
        let item = || Term::Item { item: "a".into() };
        let both = vec![(1.0, asked(&["Eyeglasses"], &["Male"])), (1.0, item()), (-2.0, asked(&["Eyeglasses"], &[]))];
        assert_eq!(explained(both).unwrap(), [(2, false), (1, false)]);
        let even = vec![(1.0, asked(&["Male"], &[])), (-1.0, asked(&["Male"], &[])), (1.0, item())];
        for nothing in [even, vec![(1.0, item())]] {
            assert!(explained(nothing).unwrap_err().message.contains("nothing to explain"));
        }
        let unexplained = check(&request(vec![(1.0, asked(&["Male"], &[]))]), &vocabulary(), &settings).unwrap();
        assert!(unexplained.explain.is_empty());
    }

    #[test]
    fn a_cursor_goes_alone_and_fits_its_release() {
        let job = likeness_contract::ids::JobId::new("j").unwrap();
        let generation =
            likeness_contract::jobs::GenerationRef { gallery: Name::new("g").unwrap(), generation: job.clone() };
        let whole = Cursor {
            alias: Name::new("a").unwrap(),
            release: 1,
            model: job,
            generation,
            vector: vec![0.6, 0.8],
            left_out: vec![],
            filter: vec![(2, true)],
            recall: None,
            answered: 9_995,
            d2: 0.5,
            item: "x".into(),
            explain: vec![],
        };
        let text = whole.to_text().unwrap();
        let page = request(vec![]);
        assert_eq!(cursor(&page, &text).unwrap(), whole);
        let also = SearchRequest { recall: Some(0.9), ..page.clone() };
        assert!(cursor(&also, &text).unwrap_err().message.contains("are not said again"));
        let other = SearchRequest { alias: Name::new("b").unwrap(), ..page.clone() };
        assert_eq!(cursor(&other, &text).unwrap_err().message, "the cursor is of alias `a`, not of `b`");
        assert!(cursor(&page, &text[1..]).unwrap_err().message.contains("cut off or changed"));
        let wanted = Wanted::of_cursor(&whole, 10, 3, 2).unwrap();
        assert_eq!((wanted.depth(), wanted.after), (10_000, Some((9_995, 0.5, "x".to_string()))));
        let explained = Cursor { explain: vec![(2, true)], ..whole.clone() };
        assert_eq!(Wanted::of_cursor(&explained, 10, 3, 2).unwrap().explain, [(2, true)]);
        for (vocabulary, dim) in [(2, 2), (3, 3)] {
            assert!(Wanted::of_cursor(&whole, 10, vocabulary, dim).unwrap_err().message.contains("was changed"));
        }
    }

    #[test]
    fn a_name_asked_twice_is_asked_once() {
        let request = request(vec![(1.0, asked(&["Smiling,smiling", "Male", "Smiling"], &[]))]);
        let multi_hot = check(&request, &vocabulary(), &settings(QueryEncoding::MultiHot)).unwrap();
        assert_eq!(multi_hot.terms, [(1.0, Input::Attributes(vec![1.0, 1.0, 0.0]))]);
    }

    #[test]
    fn a_multi_hot_model_refuses_what_it_cannot_say() {
        let request = request(vec![(1.0, asked(&["Smiling"], &["Male"]))]);
        let multi_hot = settings(QueryEncoding::MultiHot);
        assert!(check(&request, &vocabulary(), &multi_hot).unwrap_err().message.contains("without `Male`"));
        let three_state = check(&request, &vocabulary(), &settings(QueryEncoding::ThreeState)).unwrap();
        assert_eq!(three_state.terms, [(1.0, Input::Attributes(vec![1.0, -1.0, 0.0]))]);
    }

    #[test]
    fn terms_are_summed_by_weight_and_normalised() {
        let (x, y): (Arc<[f32]>, Arc<[f32]>) = ([1.0, 0.0].into(), [0.0, 1.0].into());
        assert_eq!(combine(&[(3.0, x.clone()), (4.0, y.clone())]).unwrap(), [0.6, 0.8]);
        assert_eq!(combine(&[(2.0, x.clone())]).unwrap(), [1.0, 0.0]);
        assert_eq!(combine(&[(1.0, x.clone()), (-1.0, y)]).unwrap(), [0.5f32.sqrt(), -0.5f32.sqrt()]);
        assert!(combine(&[(1.0, x.clone()), (-1.0, x)]).unwrap_err().message.contains("cancel"));
    }
}
