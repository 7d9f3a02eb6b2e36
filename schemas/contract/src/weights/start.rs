//! How the tensors of a file become those of a new model.

use std::collections::BTreeMap;

use super::{ATTRIBUTES_PREFIX, BATCH_COUNT, IMAGE_PREFIX, backbone_tensors, head_shape};
use crate::settings::Architecture;

/// Most names that a message lists of each kind.
const LISTED: usize = 6;
/// A name that every ResNet has; what stands before it stands before all of them.
const STEM: &str = "conv1.weight";
/// The head, behind the prefix.
const HEAD: [&str; 2] = ["fc.weight", "fc.bias"];

/// What may be taken beside the backbone, of a model of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WholeParts {
    /// The head, where it has this D.
    pub head: Option<u32>,
    /// The attribute tower: the vocabulary and its encoding are the same.
    pub attributes: bool,
}

/// What is taken from a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartPlan {
    /// Name in the model and name in the file.
    pub taken: Vec<(String, String)>,
    /// Names in the file that are left out, batch counts aside.
    pub dropped: Vec<String>,
    /// Whether the head is among those taken.
    pub with_head: bool,
    /// Whether the attribute tower is.
    pub with_attributes: bool,
}

impl StartPlan {
    /// For people: what starts from the file and what starts fresh.
    pub fn words(&self, architecture: Architecture) -> String {
        let taken = self.taken.len();
        let what = match (self.with_head, self.with_attributes) {
            (true, true) => "backbone, head and attribute tower",
            (true, false) => "backbone and head",
            (false, true) => "backbone and attribute tower",
            (false, false) => "backbone",
        };
        let fresh = if self.with_head && self.with_attributes { "" } else { "; all else starts fresh" };
        let name = architecture.name();
        let mut text = format!("{taken} tensors are taken ({what} of {name}){fresh}");
        if let Some(dropped) = listed("left out", &self.dropped) {
            text.push_str(&format!("; {dropped}"));
        }
        text
    }
}

/// Which tensors of a file with these shapes a model takes. The backbone must be there as a whole, its names behind any
/// one prefix; the head of another task is dropped.
///
/// The error lists what is missing, of another shape or unexpected, and says which architecture would fit.
pub fn plan_start(
    architecture: Architecture,
    parts: WholeParts,
    found: &BTreeMap<String, Vec<usize>>,
) -> Result<StartPlan, String> {
    let fit = Fit::new(architecture, found)?;
    if let Some(complaints) = fit.complaints() {
        let name = architecture.name();
        let fits = |other: &Architecture| Fit::new(*other, found).is_ok_and(|fit| fit.complaints().is_none());
        let other = Architecture::ALL.iter().map(|(_, other)| *other).find(fits);
        let hint = other.map_or(String::new(), |other| {
            format!(". They are those of {0}: ask for `--architecture {0}`", other.name())
        });
        return Err(format!("the weights are not those of {name}: {complaints}{hint}"));
    }
    Ok(fit.plan(architecture, parts, found))
}

/// A file held against an architecture.
#[derive(Debug, Default)]
struct Fit {
    prefix: String,
    taken: Vec<(String, String)>,
    missing: Vec<String>,
    wrong: Vec<String>,
    unexpected: Vec<String>,
}

impl Fit {
    fn new(architecture: Architecture, found: &BTreeMap<String, Vec<usize>>) -> Result<Self, String> {
        let mut fit = Self { prefix: prefix(found)?, ..Self::default() };
        let expected = backbone_tensors(architecture);
        for (name, shape) in &expected {
            let source = format!("{}{name}", fit.prefix);
            match found.get(&source) {
                None => fit.missing.push(source),
                Some(other) if other != shape => {
                    fit.wrong.push(format!("{source}` is {other:?} instead of `{shape:?}"));
                }
                Some(_) => fit.taken.push((format!("{IMAGE_PREFIX}{name}"), source)),
            }
        }
        let known = |name: &str| {
            let own = name.strip_prefix(&fit.prefix);
            let of_the_backbone = own.is_some_and(|own| expected.iter().any(|(name, _)| name == own));
            of_the_backbone || own.is_some_and(is_head) || is_skipped(name)
        };
        fit.unexpected = found.keys().filter(|name| !known(name)).cloned().collect();
        Ok(fit)
    }

    fn complaints(&self) -> Option<String> {
        let kinds = [("missing", &self.missing), ("of another shape", &self.wrong), ("unexpected", &self.unexpected)];
        let complaints: Vec<String> = kinds.into_iter().filter_map(|(what, names)| listed(what, names)).collect();
        (!complaints.is_empty()).then(|| complaints.join("; "))
    }

    fn plan(self, architecture: Architecture, parts: WholeParts, found: &BTreeMap<String, Vec<usize>>) -> StartPlan {
        let head = HEAD.map(|name| format!("{}{name}", self.prefix));
        let fits = |dim| found.get(&head[0]) == Some(&head_shape(architecture, dim)) && found.contains_key(&head[1]);
        let mut plan = StartPlan { taken: self.taken, ..StartPlan::default() };
        plan.with_head = parts.head.is_some_and(fits);
        if plan.with_head {
            plan.taken
                .extend(HEAD.iter().zip(&head).map(|(name, from)| (format!("{IMAGE_PREFIX}{name}"), from.clone())));
        }
        let attributes =
            found.keys().filter(|name| name.starts_with(ATTRIBUTES_PREFIX) && !name.ends_with(BATCH_COUNT));
        let attributes: Vec<(String, String)> = attributes.map(|name| (name.clone(), name.clone())).collect();
        plan.with_attributes = parts.attributes && plan.with_head && !attributes.is_empty();
        if plan.with_attributes {
            plan.taken.extend(attributes);
        }
        let taken = |name: &String| plan.taken.iter().any(|(_, from)| from == name);
        plan.dropped = found.keys().filter(|name| !taken(name) && !name.ends_with(BATCH_COUNT)).cloned().collect();
        plan
    }
}

/// What stands before the names of the backbone: nothing, `image.`, or what a wrapper put there (`module.`).
fn prefix(found: &BTreeMap<String, Vec<usize>>) -> Result<String, String> {
    let mut prefixes: Vec<&str> = found.keys().filter_map(|name| name.strip_suffix(STEM)).collect();
    prefixes.retain(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    // `layer1.0.conv1.weight` ends like the stem's.
    prefixes.retain(|prefix| !prefix.contains("layer"));
    match prefixes[..] {
        [prefix] => Ok(prefix.to_string()),
        [] => {
            let names: Vec<String> = found.keys().cloned().collect();
            let has = listed("tensors", &names).unwrap_or_else(|| "no tensor".into());
            Err(format!("these are no weights of a ResNet with torchvision's names: `{STEM}` is missing; it has {has}"))
        }
        _ => Err(format!("the file holds {} networks: `{STEM}` behind each of {prefixes:?}", prefixes.len())),
    }
}

fn is_head(name: &str) -> bool {
    HEAD.contains(&name)
}

fn is_skipped(name: &str) -> bool {
    name.ends_with(BATCH_COUNT) || name.starts_with(ATTRIBUTES_PREFIX)
}

fn listed(what: &str, names: &[String]) -> Option<String> {
    let list = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match (names.len(), names.len().saturating_sub(LISTED)) {
        (0, _) => None,
        (n, 0) => Some(format!("{n} {what}: {list}")),
        (n, more) => Some(format!("{n} {what}: {list} and {more} more")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::features;
    use super::*;

    fn torchvision(architecture: Architecture, prefix: &str) -> BTreeMap<String, Vec<usize>> {
        let mut found: BTreeMap<String, Vec<usize>> = backbone_tensors(architecture)
            .into_iter()
            .map(|(name, shape)| (format!("{prefix}{name}"), shape))
            .collect();
        found.insert(format!("{prefix}fc.weight"), head_shape(architecture, 1000));
        found.insert(format!("{prefix}fc.bias"), vec![1000]);
        found.insert(format!("{prefix}bn1.{BATCH_COUNT}"), vec![]);
        found
    }

    fn ours(dim: u32) -> BTreeMap<String, Vec<usize>> {
        let mut found = torchvision(Architecture::CnnS, IMAGE_PREFIX);
        found.insert("image.fc.weight".into(), head_shape(Architecture::CnnS, dim));
        found.insert("attributes.linear1.weight".into(), vec![dim as usize, 40]);
        found
    }

    #[test]
    fn numbers_of_parameters_are_torchvisions() {
        let count = |architecture| -> usize {
            let tensors = backbone_tensors(architecture).into_iter().filter(|(name, _)| !name.contains("running"));
            let backbone: usize = tensors.map(|(_, shape)| shape.iter().product::<usize>()).sum();
            backbone + 1000 * features(architecture) + 1000
        };
        // sum(p.numel() for p in torchvision.models.resnet18().parameters())
        for (architecture, torchvision) in [
            (Architecture::ResNet18, 11_689_512),
            (Architecture::ResNet34, 21_797_672),
            (Architecture::ResNet50, 25_557_032),
            (Architecture::ResNet101, 44_549_160),
        ] {
            assert_eq!(count(architecture), torchvision, "{}", architecture.name());
        }
    }

    #[test]
    fn torchvisions_weights_give_the_backbone_whatever_stands_before_their_names() {
        for prefix in ["", "module.", "image."] {
            let found = torchvision(Architecture::ResNet18, prefix);
            let plan = plan_start(Architecture::ResNet18, WholeParts::default(), &found).unwrap();
            assert_eq!(plan.taken.len(), 100);
            assert_eq!(plan.taken[0], ("image.conv1.weight".into(), format!("{prefix}conv1.weight")));
            assert_eq!(plan.dropped, [format!("{prefix}fc.bias"), format!("{prefix}fc.weight")]);
            let words = plan.words(Architecture::ResNet18);
            assert!(words.contains("; all else starts fresh") && words.contains("fc.weight"), "{words}");
        }
    }

    #[test]
    fn weights_of_another_architecture_are_named() {
        let found = torchvision(Architecture::ResNet34, "");
        let error = plan_start(Architecture::ResNet50, WholeParts::default(), &found).unwrap_err();
        for word in [
            "missing: `layer1.0.conv3.weight`",
            "of another shape: `layer1.0.conv1.weight` is [64, 64, 3, 3] instead of `[64, 64, 1, 1]`",
            "--architecture resnet34",
        ] {
            assert!(error.contains(word), "{word}: {error}");
        }
        let mut found = torchvision(Architecture::ResNet18, "");
        found.insert("classifier.weight".into(), vec![10, 512]);
        let error = plan_start(Architecture::ResNet18, WholeParts::default(), &found).unwrap_err();
        assert!(error.ends_with("1 unexpected: `classifier.weight`"), "{error}");
    }

    #[test]
    fn what_is_no_resnet_is_said() {
        let found = BTreeMap::from([("features.0.weight".to_string(), vec![64, 3, 11, 11])]);
        let error = plan_start(Architecture::ResNet18, WholeParts::default(), &found).unwrap_err();
        assert!(error.contains("no weights of a ResNet") && error.contains("features.0.weight"), "{error}");
        let mut two = torchvision(Architecture::ResNet18, "student.");
        two.extend(torchvision(Architecture::ResNet18, "teacher."));
        assert!(plan_start(Architecture::ResNet18, WholeParts::default(), &two).unwrap_err().contains("2 networks"));
    }

    #[test]
    fn head_and_attribute_tower_of_our_own_are_taken_where_they_fit() {
        let parts = |dim, attributes| WholeParts { head: Some(dim), attributes };
        let plan = |parts| plan_start(Architecture::CnnS, parts, &ours(300)).unwrap();
        let all = plan(parts(300, true));
        assert_eq!((all.with_head, all.with_attributes, all.dropped.len()), (true, true, 0));
        let other_dim = plan(parts(100, true));
        assert_eq!((other_dim.with_head, other_dim.with_attributes, other_dim.dropped.len()), (false, false, 3));
        let other_vocabulary = plan(parts(300, false));
        assert_eq!((other_vocabulary.with_head, other_vocabulary.with_attributes), (true, false));
        assert_eq!(other_vocabulary.dropped, ["attributes.linear1.weight"]);
    }
}
