//! The contract as its descriptors tell it, and any call of it with any bytes: a scenario over this list includes the calls
//! that are added later.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use chatbox_proto::{FILE_DESCRIPTOR_SET, codec::RawCodec, error_code::ERROR_DOMAIN};
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::{Request, Status, client::Grpc, metadata::MetadataMap, transport::Channel};
use tonic_types::{ErrorDetail, ErrorInfo, StatusExt as _};

use super::wait::{LIMIT, within};

/// One call of the contract.
#[derive(Debug, Clone)]
pub struct Method {
    /// Like `/chatbox.v1.ChatCore/ListModels`.
    pub path: String,
    /// The client sends a stream.
    pub client_streams: bool,
    /// Field numbers from the request down to its `session_id`, when it has one.
    session_id: Option<Vec<u64>>,
}

impl Method {
    /// The name alone, like `ListModels`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it belongs to `ChatAdmin`.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.path.contains(".ChatAdmin/")
    }

    /// A request that names this session and nothing else; None for a request without a session.
    #[must_use]
    pub fn request_for(&self, session_id: &str) -> Option<Bytes> {
        let path = self.session_id.as_ref()?;
        let bytes = path.iter().rev().fold(session_id.as_bytes().to_vec(), |inner, number| {
            let mut outer = Vec::new();
            prost::encoding::encode_varint(number << 3 | 2, &mut outer);
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            outer.extend(inner);
            outer
        });
        Some(bytes.into())
    }
}

/// Every call of `chatbox.v1`.
///
/// # Errors
/// When the descriptors do not decode.
pub fn methods() -> Result<Vec<Method>> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)?;
    let mut messages = HashMap::new();
    for file in &set.file {
        collect(&format!(".{}", file.package()), &file.message_type, &mut messages);
    }
    let mut methods = Vec::new();
    for file in set.file.iter().filter(|file| file.package() == "chatbox.v1") {
        for service in &file.service {
            for method in &service.method {
                let request = messages.get(method.input_type()).context("the request is described")?;
                methods.push(Method {
                    path: format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    client_streams: method.client_streaming(),
                    session_id: find_session_id(request, &messages, 0),
                });
            }
        }
    }
    ensure!(methods.len() > 20, "the contract has more calls than {}", methods.len());
    Ok(methods)
}

/// The names of the frames that a client may send on `Chat`.
///
/// # Errors
/// When the descriptors do not decode.
pub fn client_frames() -> Result<Vec<String>> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)?;
    let mut messages = HashMap::new();
    for file in &set.file {
        collect(&format!(".{}", file.package()), &file.message_type, &mut messages);
    }
    let request = messages.get(".chatbox.v1.ChatRequest").context("ChatRequest is described")?;
    Ok(request.field.iter().filter(|f| f.oneof_index.is_some()).map(|f| f.json_name().to_owned()).collect())
}

fn collect<'a>(scope: &str, types: &'a [DescriptorProto], messages: &mut HashMap<String, &'a DescriptorProto>) {
    for message in types {
        let name = format!("{scope}.{}", message.name());
        collect(&name, &message.nested_type, messages);
        messages.insert(name, message);
    }
}

fn find_session_id(
    message: &DescriptorProto,
    messages: &HashMap<String, &DescriptorProto>,
    depth: usize,
) -> Option<Vec<u64>> {
    let number = |field: &prost_types::FieldDescriptorProto| u64::try_from(field.number()).ok();
    if let Some(field) = message.field.iter().find(|field| field.name() == "session_id") {
        return Some(vec![number(field)?]);
    }
    if depth > 2 {
        return None;
    }
    message.field.iter().find_map(|field| {
        let inner = find_session_id(messages.get(field.type_name())?, messages, depth + 1)?;
        Some([vec![number(field)?], inner].concat())
    })
}

/// What a call was answered with.
#[derive(Debug)]
pub struct Answered {
    /// The messages.
    pub messages: Vec<Bytes>,
    /// How it ended; `Ok` when all went well.
    pub status: Status,
}

/// Makes a call with these messages, half-closes and reads to the end. `metadata` is sent as it is.
///
/// # Errors
/// When the server is not there, or the call does not end in time.
pub async fn call(channel: &Channel, path: &str, metadata: MetadataMap, messages: Vec<Bytes>) -> Result<Answered> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let request = Request::from_parts(metadata, http::Extensions::new(), tokio_stream::iter(messages));
    let path_and_query: PathAndQuery = path.parse()?;
    within(&format!("{path} ends"), LIMIT, async move {
        let mut received = Vec::new();
        let mut answers = match client.streaming(request, path_and_query, RawCodec).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Answered { messages: received, status },
        };
        loop {
            match answers.message().await {
                Ok(Some(message)) => received.push(message),
                Ok(None) => return Answered { messages: received, status: Status::ok("") },
                Err(status) => return Answered { messages: received, status },
            }
        }
    })
    .await
}

/// Metadata with a bearer token.
///
/// # Errors
/// When the token cannot be metadata.
pub fn bearer(token: &str) -> Result<MetadataMap> {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse()?);
    Ok(metadata)
}

/// The one `ErrorInfo` of a failed call.
///
/// # Errors
/// When there is none or more than one, it is not ours, or the message is not for people.
pub fn error_info(status: &Status) -> Result<ErrorInfo> {
    let mut infos: Vec<ErrorInfo> = Vec::new();
    for detail in status.get_error_details_vec() {
        if let ErrorDetail::ErrorInfo(info) = detail {
            infos.push(info);
        }
    }
    ensure!(infos.len() == 1, "{} ErrorInfo in {status:?}", infos.len());
    let info = infos.remove(0);
    ensure!(info.domain == ERROR_DOMAIN && !info.reason.is_empty(), "{info:?} in {status:?}");
    let reason_is_a_tag = info.reason.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    ensure!(reason_is_a_tag && info.reason.len() <= 63, "{info:?}");
    for leak in ["panicked", "::", ".rs", "/root", "tokio", "sqlite"] {
        ensure!(!status.message().to_lowercase().contains(leak), "{leak} in {status:?}");
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use chatbox_proto::v1::{ChatRequest, ListMessagesRequest, chat_request::Frame};

    use super::*;

    fn method(path: &str) -> Method {
        methods().unwrap().into_iter().find(|method| method.path.ends_with(path)).unwrap()
    }

    #[test]
    fn the_session_id_is_found_and_filled_in_wherever_it_is() {
        let flat = method("ChatCore/ListMessages").request_for("s").unwrap();
        assert_eq!(ListMessagesRequest::decode(flat).unwrap().session_id, "s");
        let nested = ChatRequest::decode(method("ChatCore/Chat").request_for("s").unwrap()).unwrap();
        assert!(matches!(nested.frame, Some(Frame::Open(open)) if open.session_id == "s"));
        assert!(method("ChatCore/ListModels").request_for("s").is_none());
        assert!(client_frames().unwrap().contains(&"refreshToken".to_owned()));
    }

    #[test]
    fn a_status_without_details_is_found() {
        assert!(error_info(&Status::not_found("x")).is_err());
        let ours = Status::from(chatbox_proto::status::Failure::session_not_found());
        assert_eq!(error_info(&ours).unwrap().reason, "SESSION_NOT_FOUND");
    }
}
