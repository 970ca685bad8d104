//! Every property over its corpus, and over mutations and mixtures of it: what the fuzz targets do for hours is done here
//! for seconds, on the stable compiler and without instrumentation.

use std::{fs, path::PathBuf};

use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

use super::{ALL, Property};

const MUTATIONS: u32 = 512;

fn fuzz_folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = fuzz_folder().join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// A change to an input: where, for how many bytes, and what comes instead.
#[derive(Debug, Clone)]
enum Edit {
    Replace(Vec<u8>),
    Flip(u8),
    Repeat(u8),
    Splice(Index, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..4).prop_map(Edit::Replace),
        (0..8_u8).prop_map(Edit::Flip),
        (1..20_u8).prop_map(Edit::Repeat),
        (any::<Index>(), any::<Index>()).prop_map(|(seed, from)| Edit::Splice(seed, from)),
    ]
}

fn apply(mut input: Vec<u8>, edits: &[(Index, u8, Edit)], seeds: &[Vec<u8>]) -> Vec<u8> {
    for (at, length, edit) in edits {
        let at = at.index(input.len() + 1);
        let end = (at + usize::from(*length)).min(input.len());
        match edit {
            Edit::Replace(bytes) => drop(input.splice(at..end, bytes.iter().copied())),
            Edit::Flip(bit) => input[at..end].iter_mut().for_each(|byte| *byte ^= 1 << bit),
            Edit::Repeat(times) => {
                let piece = input[at..end].repeat((*times).into());
                input.splice(at..at, piece);
            }
            Edit::Splice(seed, from) => {
                let other = seed.get(seeds);
                input.truncate(at);
                input.extend_from_slice(&other[from.index(other.len() + 1)..]);
            }
        }
    }
    input
}

fn holds(name: &str) {
    let &(_, property): &(_, Property) = ALL.iter().find(|(known, _)| *known == name).unwrap();
    let seeds = corpus(name);
    seeds.iter().for_each(|seed| property(seed));
    let config = ProptestConfig { cases: MUTATIONS, failure_persistence: None, ..ProptestConfig::default() };
    let edits = proptest::collection::vec((any::<Index>(), 0..8_u8, edit()), 0..6);
    let inputs = (any::<Index>(), edits);
    let run = TestRunner::new(config).run(&inputs, |(seed, edits)| {
        property(&apply(seed.get(&seeds).clone(), &edits, &seeds));
        Ok(())
    });
    run.unwrap();
}

#[test]
fn a_providers_chunks_do_not_depend_on_where_the_stream_was_cut() {
    holds("chunks");
}

#[test]
fn a_frame_means_the_same_in_both_encodings_and_to_edge_and_core() {
    holds("client_frame");
}

#[test]
fn no_page_token_opens_but_our_own_for_its_own_list() {
    holds("page_token");
}

#[test]
fn no_sealed_value_opens_but_an_unchanged_one_in_its_place() {
    holds("sealed");
}

#[test]
fn an_event_is_translated_to_canonical_json_or_refused() {
    holds("server_event");
}

#[test]
fn a_stream_of_events_is_read_as_the_standard_says_wherever_it_was_cut() {
    holds("sse");
}

#[test]
fn no_token_is_taken_but_a_signed_one_with_acceptable_claims() {
    holds("token");
}

#[test]
fn what_is_read_as_a_value_is_written_and_read_back_as_the_same() {
    holds("values");
}

#[test]
fn every_property_has_its_fuzz_target_and_every_target_its_property() {
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let targets: Vec<_> = manifest["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap()).collect();
    let names: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(targets, names);
    for name in names {
        let source = fs::read_to_string(fuzz_folder().join("targets").join(format!("{name}.rs"))).unwrap();
        assert!(source.contains(&format!("chatbox_tests::properties::{name}(data)")), "{name}: {source}");
    }
}
