//! The descriptors of a service, asked of the server itself: gRPC server reflection, v1, or v1alpha where
//! the server has only that. The messages of both are the same on the wire.

use std::{collections::BTreeMap, time::Duration};

use calve_engine::{Error, Result};
use prost_reflect::{DescriptorPool, prost::Message};
use prost_types::FileDescriptorProto;
use tonic::{
    Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use super::{config::GrpcConfig, wanted};
use crate::descriptors;

/// Files that one service imports, at the most.
const MOST_FILES: usize = 2000;
/// The methods that are asked, one after the other.
const METHODS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// How long the server may think.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks for everything that the method's service needs.
///
/// # Errors
/// `Config` when the server does not know the service, or has no reflection.
pub(super) async fn descriptors(config: &GrpcConfig, channel: Channel) -> Result<DescriptorPool> {
    for method in METHODS {
        let asked = tokio::time::timeout(PATIENCE, ask(config, channel.clone(), method));
        let asked = asked.await.unwrap_or_else(|_| {
            Err(Unanswered::Wrong(Error::unavailable(format!(
                "the server does not answer about its descriptors: endpoint={}",
                config.endpoint
            ))))
        });
        match asked {
            Ok(files) => return descriptors::from_files(files),
            Err(Unanswered::Unimplemented) => {}
            Err(Unanswered::Wrong(error)) => return Err(error),
        }
    }
    Err(Error::config(format!(
        "the server has no reflection: endpoint={}",
        config.endpoint
    ))
    .hint("name `proto` or `descriptor_set` in the place of `reflection`"))
}

/// Why there are no descriptors.
enum Unanswered {
    /// The server does not have the method.
    Unimplemented,
    Wrong(Error),
}

impl From<Error> for Unanswered {
    fn from(error: Error) -> Self {
        Self::Wrong(error)
    }
}

async fn ask(
    config: &GrpcConfig,
    channel: Channel,
    method: &'static str,
) -> Result<Vec<FileDescriptorProto>, Unanswered> {
    let limit = config.max_message_size.0;
    let failed = |status: Status| match status.code() {
        Code::Unimplemented => Unanswered::Unimplemented,
        _ => Unanswered::Wrong(wanted::failed(
            &status,
            &config.endpoint,
            method.trim_start_matches('/'),
            limit,
        )),
    };
    let mut client = Grpc::new(channel).max_decoding_message_size(limit as usize);
    let (service, _) = config.method()?;
    let (questions, asked) = tokio::sync::mpsc::channel(1);
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(asked));
    *request.metadata_mut() = wanted::metadata(config)?;
    // The first question waits in the channel, since some servers answer only then.
    let ask = |question| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let first = MessageRequest::FileContainingSymbol(service.to_owned());
    // The receiver is held by the request, so that this cannot fail.
    let _ = questions.send(ask(first)).await;
    let ready = client.ready().await;
    ready.map_err(|error| failed(Status::from_error(error.into())))?;
    let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
    let path = PathAndQuery::from_static(method);
    let answer = client.streaming(request, path, codec).await;
    let mut answers = answer.map_err(failed)?.into_inner();
    let mut known: BTreeMap<String, FileDescriptorProto> = BTreeMap::new();
    let mut open: Vec<String> = Vec::new();
    loop {
        let answer = answers.message().await.map_err(failed)?;
        let what = answer.and_then(|answer| answer.message_response);
        let files = match what {
            Some(MessageResponse::FileDescriptorResponse(found)) => found.file_descriptor_proto,
            Some(MessageResponse::ErrorResponse(error)) => {
                return Err(Error::config(format!(
                    "the server does not describe the service: service={service} said={}",
                    error.error_message
                ))
                .hint("look at `method`, or name `proto` in the place of `reflection`")
                .into());
            }
            _ => {
                return Err(
                    Error::unavailable("the server ended its answer about descriptors").into(),
                );
            }
        };
        for file in files {
            let file = FileDescriptorProto::decode(&*file).map_err(|error| {
                Error::config("the server gives a descriptor that is none").because(error)
            })?;
            open.extend(file.dependency.iter().cloned());
            known.insert(file.name().to_owned(), file);
        }
        if known.len() > MOST_FILES {
            return Err(Error::config("the server describes too many files").into());
        }
        // The well-known ones are built in.
        let next = loop {
            match open.pop() {
                Some(name) if known.contains_key(&name) || name.starts_with("google/protobuf/") => {
                }
                next => break next,
            }
        };
        let Some(next) = next else {
            return Ok(known.into_values().collect());
        };
        let _ = questions
            .send(ask(MessageRequest::FileByFilename(next)))
            .await;
    }
}
