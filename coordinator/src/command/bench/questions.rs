//! What is asked: drawn from a seed, or read from a file.

use std::path::Path;
use std::sync::Arc;

use likeness_contract::documents::{GenerationManifest, Release};
use likeness_contract::keys;
use likeness_contract::search::{SearchRequest, Term, WeightedTerm};
use likeness_link::client::Client;

use super::BenchArgs;
use crate::command::bounded;
use crate::command::exit::{Failure, Outcome};

/// Most attributes of a drawn question.
const MOST_ATTRIBUTES: u64 = 3;
/// A hundred thousand questions and more, with vectors.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What drawn questions are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Draw {
    /// One to three attributes, each with or without.
    Attributes,
    /// Random directions: nothing is embedded.
    Vectors,
}

/// Questions in the order of asking; cheap to clone.
#[derive(Debug, Clone)]
pub struct Questions {
    all: Arc<[SearchRequest]>,
}

impl Questions {
    /// Reads or draws them, for what the alias serves now.
    pub async fn new(client: &Client, args: &BenchArgs) -> Outcome<Self> {
        let terms = match &args.queries {
            Some(file) => read(file)?,
            None => {
                let manifest = served(client, args).await?;
                let mut lot = Lot::new(args.seed);
                (0..args.distinct).map(|_| vec![lot.question(args.draw, &manifest)]).collect()
            }
        };
        let request = |terms| SearchRequest {
            min_coverage: args.min_coverage,
            deadline_ms: args.deadline_ms,
            recall: args.recall,
            ..SearchRequest::new(args.alias.clone(), terms, args.k)
        };
        Ok(Self { all: terms.into_iter().map(request).collect() })
    }

    /// The question of a request.
    pub fn get(&self, number: usize) -> &SearchRequest {
        &self.all[number % self.all.len()]
    }
}

async fn served(client: &Client, args: &BenchArgs) -> Outcome<GenerationManifest> {
    let releases = client.releases(Some(args.alias.clone())).await?;
    let newest: Option<Release> = releases.into_iter().next_back();
    let newest = newest.ok_or_else(|| Failure::failed(format!("alias `{}` has no release yet", args.alias)))?;
    let key = keys::generation_manifest(&newest.generation.gallery, &newest.generation.generation);
    Ok(client.store().require(&key).await?)
}

fn read(file: &Path) -> Outcome<Vec<Vec<WeightedTerm>>> {
    let name = file.display();
    let text = bounded::text(file, MAX_FILE_BYTES)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Failure::usage(format!("`{name}`, line {}: {e}", at + 1)))
    };
    let all = lines.map(parse).collect::<Outcome<Vec<_>>>()?;
    if all.is_empty() { Err(Failure::usage(format!("`{name}` has no questions"))) } else { Ok(all) }
}

/// Numbers from a seed, the same on every machine (splitmix64).
#[derive(Debug)]
pub struct Lot(u64);

impl Lot {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn question(&mut self, draw: Draw, manifest: &GenerationManifest) -> WeightedTerm {
        let term = match draw {
            Draw::Attributes => self.attributes(&manifest.vocabulary.names),
            Draw::Vectors => {
                let values = (0..manifest.embedding_dim).map(|_| (self.unit() - 0.5) as f32).collect();
                Term::Vector { values }
            }
        };
        WeightedTerm { weight: 1.0, term }
    }

    fn attributes(&mut self, names: &[String]) -> Term {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..=self.below(MOST_ATTRIBUTES) {
            let name = &names[self.below(names.len() as u64) as usize];
            if !with.contains(name) && !without.contains(name) {
                if self.below(3) > 0 { with.push(name.clone()) } else { without.push(name.clone()) }
            }
        }
        Term::Attributes { with, without }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_attributes_are_few_never_none_and_never_contradict() {
        let names: Vec<String> = ["A", "B", "C"].map(String::from).to_vec();
        let mut lot = Lot::new(3);
        for _ in 0..500 {
            let Term::Attributes { with, without } = lot.attributes(&names) else { panic!("attributes") };
            assert!((1..=3).contains(&(with.len() + without.len())));
            assert!(with.iter().all(|name| !without.contains(name)));
        }
    }

    #[test]
    fn a_file_has_a_list_of_terms_a_line_and_mistakes_name_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("q.jsonl");
        let right = r#"[{"weight": 1.0, "term": {"item": {"item": "a.jpg"}}}]"#;
        std::fs::write(&file, format!("{right}\n\n{right}\n")).unwrap();
        assert_eq!(read(&file).unwrap().len(), 2);
        std::fs::write(&file, format!("{right}\n[{{}}]\n")).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("line 2"));
    }
}
