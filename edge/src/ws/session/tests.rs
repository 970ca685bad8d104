use std::{collections::BTreeSet, time::SystemTime};

use chatbox_proto::{
    token::{Role, Roles},
    v1::chat_response,
};

use super::*;

fn identity(user_id: &str) -> Identity {
    Identity {
        user_id: user_id.into(),
        display_name: String::new(),
        roles: Roles::from_iter([Role::User]),
        scopes: BTreeSet::new(),
        expires_at: SystemTime::UNIX_EPOCH,
    }
}

fn frame(kind: Kind) -> ClientFrame {
    ClientFrame { request_id: "r".into(), kind, bytes: Bytes::from_static(b"frame") }
}

fn live() -> Session {
    let mut session = Session::new(None);
    assert!(matches!(session.on_frame(frame(Kind::Open("t".into()))), Step::Open { .. }));
    session.opened(identity("alice"));
    session
}

#[test]
fn the_first_frame_must_be_open_with_a_token_from_somewhere() {
    for kind in [Kind::Other, Kind::Detach, Kind::EndSession, Kind::RefreshToken("t".into())] {
        let Step::End(ending) = Session::new(None).on_frame(frame(kind)) else { panic!("not the end") };
        assert_eq!(ending.code, 4015);
    }
    let Step::End(ending) = Session::new(None).on_frame(frame(Kind::Open(String::new()))) else {
        panic!("not the end")
    };
    assert_eq!(ending.code, 4101);
    let Some(chat_response::Event::Error(error)) = &ending.event else { panic!("no event") };
    assert_eq!(error.request_id, "r");
    // The token of the handshake is known already; one in the frame does not change it.
    for token in ["", "other"] {
        let step = Session::new(Some(identity("alice"))).on_frame(frame(Kind::Open(token.into())));
        assert!(matches!(step, Step::Open { token: None, .. }), "{step:?}");
    }
}

#[test]
fn a_second_open_is_for_core_to_refuse() {
    assert!(matches!(live().on_frame(frame(Kind::Open("t".into()))), Step::Forward(_)));
}

#[test]
fn after_the_client_left_nothing_more_is_taken() {
    for (kind, detaching) in [(Kind::Detach, true), (Kind::EndSession, false)] {
        let mut session = live();
        assert!(!session.is_leaving() && !session.is_detaching());
        assert!(matches!(session.on_frame(frame(kind)), Step::Leave(_)));
        assert!(session.is_leaving());
        assert_eq!(session.is_detaching(), detaching);
        assert!(matches!(session.on_frame(frame(Kind::Other)), Step::Answer(_)));
    }
}

#[test]
fn only_a_token_of_the_same_caller_takes_the_place_of_another() {
    let mut session = live();
    assert!(session.refreshed(identity("alice")).is_ok());
    assert!(session.refreshed(identity("mallory")).is_err());
    let admin = Identity { roles: Roles::from_iter([Role::Admin]), ..identity("alice") };
    assert!(session.refreshed(admin).is_err());
    let scoped = Identity { scopes: BTreeSet::from(["generate".to_owned()]), ..identity("alice") };
    assert!(session.refreshed(scoped).is_err());
}
