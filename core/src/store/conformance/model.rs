//! Random histories against the simplest thing that could be right: a list of documents and a map of keys.

use std::collections::BTreeMap;

use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::*;

const CASES: usize = 20;

#[derive(Debug, Clone)]
enum Step {
    /// Appends so many entries at the head, or beside it, with a message key from a small pool.
    Append {
        session: usize,
        off: i64,
        count: u32,
        key: Option<u32>,
    },
    /// So many appends at the same head at once.
    Race {
        session: usize,
        racers: u8,
    },
    ReadAfter {
        session: usize,
        after: Seq,
        limit: u32,
    },
    ReadBefore {
        session: usize,
        before: Seq,
        limit: u32,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let session = 0_usize..3;
    prop_oneof![
        8 => (session.clone(), prop_oneof![6 => Just(0), 1 => -2_i64..3], 1_u32..5, prop::option::of(0_u32..12))
            .prop_map(|(session, off, count, key)| Step::Append { session, off, count, key }),
        2 => (session.clone(), 2_u8..6).prop_map(|(session, racers)| Step::Race { session, racers }),
        4 => (session.clone(), 0_u64..40, 1_u32..12)
            .prop_map(|(session, after, limit)| Step::ReadAfter { session, after, limit }),
        4 => (session, 0_u64..40, 1_u32..12)
            .prop_map(|(session, before, limit)| Step::ReadBefore { session, before, limit }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    documents: Vec<LogDocument>,
    keys: BTreeMap<u32, MessageKey>,
}

impl Model {
    fn head(&self) -> Seq {
        self.documents.iter().map(|document| u64::from(document.count)).sum()
    }

    fn read_after(&self, after: Seq, limit: u32) -> Vec<LogDocument> {
        let wanted = (after + 1..=self.head()).take(limit as usize);
        self.holding(wanted)
    }

    fn read_before(&self, before: Seq, limit: u32) -> Vec<LogDocument> {
        let wanted = (1..=self.head()).filter(|seq| *seq < before).rev().take(limit as usize);
        self.holding(wanted)
    }

    /// The documents of these entries, in their order, each once.
    fn holding(&self, entries: impl Iterator<Item = Seq>) -> Vec<LogDocument> {
        let mut found: Vec<LogDocument> = Vec::new();
        for seq in entries {
            let holds = |document: &&LogDocument| {
                (document.first_seq..document.first_seq + u64::from(document.count)).contains(&seq)
            };
            let document = self.documents.iter().find(holds).expect("the model has no gaps");
            if found.last() != Some(document) {
                found.push(document.clone());
            }
        }
        found
    }
}

pub(crate) async fn random_histories_agree_with_the_model(f: &mut impl Fixture) {
    let mut runner = TestRunner::default();
    let histories = prop::collection::vec(step(), 1..50);
    for _ in 0..CASES {
        let history = histories.new_tree(&mut runner).expect("the strategy rejects nothing").current();
        let mut ids = Vec::new();
        let mut models = [Model::default(), Model::default(), Model::default()];
        for _ in &models {
            ids.push(made(&f.store(), "alice").await.id);
        }
        for (n, step) in history.iter().enumerate() {
            let context = format!("step {n} of {history:#?}");
            take(f, step, &ids, &mut models, &context).await;
        }
        for (id, model) in ids.iter().zip(&models) {
            assert_eq!(f.store().read_after(*id, 0, 1000).await.unwrap(), model.documents, "{history:#?}");
            let store = f.store();
            let found = join_all((0..12).map(|key| store.find_message(*id, hash(key)))).await;
            for (key, found) in (0..).zip(found) {
                assert_eq!(found.unwrap().as_ref(), model.keys.get(&key), "key {key} of {history:#?}");
            }
        }
    }
}

async fn take(f: &mut impl Fixture, step: &Step, ids: &[SessionId], models: &mut [Model], context: &str) {
    let store = f.store();
    match *step {
        Step::Append { session, off, count, key } => {
            let model = &mut models[session];
            let expected_head = model.head().saturating_add_signed(off);
            let message = key.map(|key| (key, message(key, expected_head + 1)));
            let mut append = entries(ids[session], expected_head, count);
            append.messages = message.iter().map(|(_, message)| message.clone()).collect();
            let written = document(&append);
            let fits = expected_head == model.head() && key.is_none_or(|key| !model.keys.contains_key(&key));
            let verdict = store.append(append).await.unwrap();
            if fits {
                model.documents.push(written);
                model.keys.extend(message);
                assert_eq!(verdict, Appended::Done(model.head()), "{context}");
            } else {
                assert_eq!(verdict, Appended::Conflict, "{context}");
            }
        }
        Step::Race { session, racers } => {
            let model = &mut models[session];
            let appends: Vec<_> = (0..racers)
                .map(|racer| Append { sealed: vec![racer], ..entries(ids[session], model.head(), 1) })
                .collect();
            let documents: Vec<_> = appends.iter().map(document).collect();
            let verdicts = join_all(appends.into_iter().map(|append| store.append(append))).await;
            let won: Vec<_> = (0..documents.len())
                .filter(|racer| *verdicts[*racer].as_ref().unwrap() != Appended::Conflict)
                .collect();
            assert_eq!(won.len(), 1, "{context}");
            model.documents.push(documents[won[0]].clone());
        }
        Step::ReadAfter { session, after, limit } => {
            let read = store.read_after(ids[session], after, limit).await.unwrap();
            assert_eq!(read, models[session].read_after(after, limit), "{context}");
        }
        Step::ReadBefore { session, before, limit } => {
            let read = store.read_before(ids[session], before, limit).await.unwrap();
            assert_eq!(read, models[session].read_before(before, limit), "{context}");
        }
        Step::Reopen => {
            drop(store);
            f.reopen().await;
        }
    }
    let store = f.store();
    let heads = join_all(ids.iter().map(|id| store.head(*id))).await;
    for (head, model) in heads.into_iter().zip(models) {
        assert_eq!(head.unwrap(), model.head(), "{context}");
    }
}
