//! Compiles the contract without protoc: messages (prost), canonical JSON (pbjson), services (tonic) and the descriptor
//! set that reflection serves.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;
use prost_types::{FileDescriptorSet, ServiceDescriptorProto};

const ROOT: &str = "proto";
const PACKAGE: &str = "chatbox.v1";
const FILES: [&str; 6] = [
    "chatbox/v1/error.proto",
    "chatbox/v1/session.proto",
    "chatbox/v1/chat.proto",
    "chatbox/v1/generate.proto",
    "chatbox/v1/chat_core.proto",
    "chatbox/v1/chat_admin.proto",
];

#[expect(clippy::disallowed_methods, reason = "cargo tells a build script where to write by the environment")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={ROOT}");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile(FILES, [ROOT])?;
    let encoded = descriptors.encode_to_vec();
    fs::write(out.join("chatbox.v1.binpb"), &encoded)?;

    prost_build::Config::new()
        .compile_well_known_types()
        .bytes(["."])
        .extern_path(".google.protobuf.Timestamp", "crate::time::Timestamp")
        .extern_path(".google.protobuf.Duration", "::pbjson_types::Duration")
        .compile_fds(descriptors.clone())?;

    // Chat frames come from strangers who may be newer than we are: unknown fields are ignored there. Unary JSON bodies are
    // checked strictly by `json::from_slice_strict`.
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .extern_path(".google.protobuf.Timestamp", "crate::time::Timestamp")
        .extern_path(".google.protobuf.Duration", "::pbjson_types::Duration")
        .ignore_unknown_fields()
        .build(&[format!(".{PACKAGE}")])?;
    write_unknown_enum_values(&out.join(format!("{PACKAGE}.serde.rs")))?;

    let services = services(&descriptors);
    tonic_build::manual::Builder::new().out_dir(&out).compile(&services);
    Ok(())
}

/// The generated code refuses to write an enum value that it has no name for, which a newer peer may well send. Canonical
/// JSON writes its number.
fn write_unknown_enum_values(serde: &Path) -> Result<(), Box<dyn Error>> {
    const REFUSES: &str = ".map_err(|_| serde::ser::Error::custom(format!(\"Invalid variant {}\", ";
    let source = fs::read_to_string(serde)?;
    let mut parts = source.split(REFUSES);
    let mut changed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = part.split_once(")))?").ok_or("the generated code writes enum values in another way")?;
        let written = ".map_or_else(|_| crate::json::EnumValue::Number({}), crate::json::EnumValue::Name)";
        changed.push_str(&written.replace("{}", number));
        changed.push_str(rest);
    }
    if changed.contains("Invalid variant") || !changed.contains("EnumValue") {
        return Err("the generated code writes enum values in another way".into());
    }
    fs::write(serde, changed)?;
    Ok(())
}

/// The services with their codecs. `Chat` and `Generate` carry raw bytes in both directions: core answers frames that do not
/// decode instead of losing the stream, fans out an event that was encoded once, and edge forwards payloads it does not
/// look into.
fn services(descriptors: &FileDescriptorSet) -> Vec<tonic_build::manual::Service> {
    descriptors
        .file
        .iter()
        .filter(|file| file.package() == PACKAGE)
        .flat_map(|file| &file.service)
        .map(service)
        .collect()
}

fn service(descriptor: &ServiceDescriptorProto) -> tonic_build::manual::Service {
    let mut service = tonic_build::manual::Service::builder().name(descriptor.name()).package(PACKAGE);
    for rpc in &descriptor.method {
        let raw = matches!(rpc.name(), "Chat" | "Generate");
        let rust_type = |full: &str| {
            if raw { "::bytes::Bytes".to_owned() } else { full.replacen(&format!(".{PACKAGE}."), "crate::v1::", 1) }
        };
        let codec = if raw { "crate::codec::RawCodec" } else { "tonic_prost::ProstCodec" };
        let mut method = tonic_build::manual::Method::builder()
            .name(snake_case(rpc.name()))
            .route_name(rpc.name())
            .input_type(rust_type(rpc.input_type()))
            .output_type(rust_type(rpc.output_type()))
            .codec_path(codec);
        if rpc.client_streaming() {
            method = method.client_streaming();
        }
        if rpc.server_streaming() {
            method = method.server_streaming();
        }
        service = service.method(method.build());
    }
    service.build()
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
