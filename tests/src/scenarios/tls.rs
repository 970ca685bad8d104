//! TLS between edge and core, with certificates on both sides.

use std::{fs, path::Path};

use chatbox_proto::v1::{ListModelsRequest, chat_request::Open, core::chat_core_client::ChatCoreClient};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::{
    Code, Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::harness::{
    client::Transport,
    stack::{Setup, Stack},
};

/// An authority, and a certificate of it for each side, as PEM files in a folder.
struct Files {
    authority: String,
    core: (String, String),
    edge: (String, String),
}

fn files(folder: &Path) -> anyhow::Result<Files> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let write = |name: &str, pem: &str| -> anyhow::Result<String> {
        let path = folder.join(name);
        fs::write(&path, pem)?;
        Ok(path.display().to_string())
    };
    let side = |name: &str| -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let certificate = write(&format!("{name}.pem"), &certificate.pem())?;
        Ok((certificate, write(&format!("{name}.key"), &key.serialize_pem())?))
    };
    Ok(Files { authority: write("authority.pem", &authority.pem())?, core: side("core")?, edge: side("edge")? })
}

fn setup() -> anyhow::Result<(Setup, Files)> {
    let setup = Setup::new()?;
    let files = files(&setup.folder())?;
    let setup = setup.with(|setup| {
        setup.core.tls.cert_file.clone_from(&files.core.0);
        setup.core.tls.key_file.clone_from(&files.core.1);
        setup.core.tls.client_ca_file.clone_from(&files.authority);
        setup.edge.core.ca_file.clone_from(&files.authority);
        setup.edge.core.cert_file.clone_from(&files.edge.0);
        setup.edge.core.key_file.clone_from(&files.edge.1);
    });
    Ok((setup, files))
}

async fn list_models(stack: &Stack, tls: ClientTlsConfig) -> anyhow::Result<()> {
    let address = stack.addresses().grpc;
    let channel: Channel = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?;
    let mut request = Request::new(ListModelsRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {}", stack.token("alice", "user")?).parse()?);
    ChatCoreClient::new(channel).list_models(request).await?;
    Ok(())
}

#[tokio::test]
async fn a_conversation_goes_over_tls_with_certificates_on_both_sides() {
    let (setup, files) = setup().unwrap();
    let stack = Stack::start(setup).await.unwrap();
    for transport in [Transport::ALL[0], Transport::ALL[1]] {
        let mut client = stack.connect(transport, "alice").await.unwrap();
        client.open(Open::default()).await.unwrap();
        client.say(&format!("m{transport:?}"), "hello").await.unwrap();
        client.reply().await.unwrap();
    }

    let read = |path: &str| fs::read(path).unwrap();
    let trusting = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&files.authority)));
    let known = trusting.clone().identity(Identity::from_pem(read(&files.edge.0), read(&files.edge.1)));
    list_models(&stack, known).await.unwrap();
    // Without a certificate of the authority there is no call, whatever the token.
    let refused = list_models(&stack, trusting).await.unwrap_err();
    let status = refused.downcast_ref::<tonic::Status>();
    assert!(
        status.is_none_or(|status| matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal)),
        "{refused:?}"
    );
    stack.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_certificate_is_refused_before_anything_listens() {
    let (setup, files) = setup().unwrap();
    fs::write(&files.core.0, "no certificate").unwrap();
    let error = Stack::start(setup).await.unwrap_err();
    assert!(format!("{error:#}").contains("tls.cert_file"), "{error:#}");
}
