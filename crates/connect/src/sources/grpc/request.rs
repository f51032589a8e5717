//! The method and its request: found in the descriptors, built from the pipeline file, and set to
//! where a stream is to go on.

use bytes::Bytes;
use calve_engine::{Error, Result};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ReflectMessage, Value, prost::Message,
};
use serde_json::Value as Json;

use super::{
    config::{GrpcConfig, ResumeConfig},
    groups::Mark,
    path::{FieldPath, field},
};

/// Finds the method.
///
/// # Errors
/// `Config` when it is not there (with its neighbours), or does not stream as it must.
pub(super) fn method(config: &GrpcConfig, pool: &DescriptorPool) -> Result<MethodDescriptor> {
    let (service, name) = config.method()?;
    let Some(found) = pool.get_service_by_name(service) else {
        let known: Vec<String> = pool.services().map(|s| s.full_name().to_owned()).collect();
        return Err(
            Error::config(format!("unknown service: service={service}")).hint(
                if known.is_empty() {
                    "the descriptors hold no service".to_owned()
                } else {
                    format!("known: {}", known.join(", "))
                },
            ),
        );
    };
    let Some(method) = found.methods().find(|method| method.name() == name) else {
        let known: Vec<String> = found.methods().map(|m| m.name().to_owned()).collect();
        return Err(
            Error::config(format!("unknown method: service={service} method={name}"))
                .hint(format!("known: {}", known.join(", "))),
        );
    };
    if !method.is_server_streaming() || method.is_client_streaming() {
        return Err(Error::config(format!(
            "the method does not stream its answers to one request: method={service}/{name}"
        ))
        .hint(
            "only server-streaming methods can be read: `rpc … (Request) returns (stream Event)`",
        ));
    }
    Ok(method)
}

/// The request, and how it is resumed.
pub(super) struct Asking {
    request: DynamicMessage,
    resume: Option<Resume>,
}

/// What `resume` says, found in the descriptors.
struct Resume {
    /// The field of the request, from the outside in.
    field: Vec<FieldDescriptor>,
    inclusive: bool,
    shown: String,
    until: Option<u64>,
}

impl Asking {
    /// Builds the request.
    ///
    /// # Errors
    /// `Config`, with the field.
    pub(super) fn new(config: &GrpcConfig, method: &MethodDescriptor) -> Result<Self> {
        let request = build(&config.request, &method.input())?;
        let resume = config.resume.as_ref();
        let resume = resume
            .map(|resume| Resume::new(resume, &request))
            .transpose()?;
        if let (Some(asked), Some(resume)) = (&resume, &config.resume) {
            let column = FieldPath::compile(&method.output(), &resume.from_column)
                .map_err(|error| error.context("resume.from_column"))?;
            let stamp = asked
                .field
                .last()
                .is_some_and(|field| is_timestamp(&field.kind()));
            if column.is_timestamp() != stamp {
                return Err(Error::config(format!(
                    "resume.request_field and resume.from_column are not of one kind: request_field={} \
                     from_column={}",
                    resume.request_field, resume.from_column
                ))
                .hint("both are whole numbers, or both are timestamps"));
            }
        }
        Ok(Self { request, resume })
    }

    /// Where the stream ends by the request's own word; inclusive.
    pub(super) fn until(&self) -> Option<u64> {
        self.resume.as_ref()?.until
    }

    /// The request for what comes behind `front`. It asks for the last group once more, since what was
    /// taken is left out anyway: so nothing is lost when a server means "behind" by what the pipeline
    /// file takes for "from".
    ///
    /// # Errors
    /// `Config` when the value does not fit the field.
    pub(super) fn behind(&self, front: &Mark) -> Result<Bytes> {
        let mut request = self.request.clone();
        if let Some(resume) = self.resume.as_ref().filter(|_| !front.is_start()) {
            let from = match (resume.inclusive, front.whole) {
                (true, _) | (false, true) => Some(front.value),
                // The group before: what comes behind it is the rest of this one.
                (false, false) => front.value.checked_sub(1),
            };
            if let Some(from) = from {
                resume.set(&mut request, from)?;
            }
        }
        Ok(Bytes::from(request.encode_to_vec()))
    }
}

impl Resume {
    fn new(config: &ResumeConfig, request: &DynamicMessage) -> Result<Self> {
        let descriptor = request.descriptor();
        let field = find(&descriptor, &config.request_field)
            .map_err(|error| error.context("resume.request_field"))?;
        let until = match &config.until_field {
            None => None,
            Some(path) => {
                let field =
                    find(&descriptor, path).map_err(|error| error.context("resume.until_field"))?;
                match number(request, &field) {
                    Some(0) | None => None,
                    until => until,
                }
            }
        };
        Ok(Self {
            field,
            inclusive: config.inclusive,
            shown: config.request_field.clone(),
            until,
        })
    }

    fn set(&self, request: &mut DynamicMessage, value: u64) -> Result<()> {
        let too_large = || {
            Error::config(format!(
                "the position does not fit the request's field: field={} position={value}",
                self.shown
            ))
        };
        let Some((leaf, outer)) = self.field.split_last() else {
            return Ok(());
        };
        let mut at = request;
        for field in outer {
            let Value::Message(inner) = at.get_field_mut(field) else {
                return Err(Error::internal("a field of messages holds none"));
            };
            at = inner;
        }
        let signed = i64::try_from(value);
        let value = match leaf.kind() {
            Kind::Uint32 | Kind::Fixed32 => {
                Value::U32(u32::try_from(value).map_err(|_| too_large())?)
            }
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                Value::I32(i32::try_from(value).map_err(|_| too_large())?)
            }
            Kind::Uint64 | Kind::Fixed64 => Value::U64(value),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                Value::I64(signed.map_err(|_| too_large())?)
            }
            Kind::Message(stamp) => {
                let mut message = DynamicMessage::new(stamp);
                message.set_field_by_number(1, Value::I64((value / 1_000_000_000) as i64));
                message.set_field_by_number(2, Value::I32((value % 1_000_000_000) as i32));
                Value::Message(message)
            }
            _ => return Err(Error::internal("the field of a request is no number")),
        };
        at.set_field(leaf, value);
        Ok(())
    }
}

fn is_timestamp(kind: &Kind) -> bool {
    matches!(kind, Kind::Message(message) if message.full_name() == "google.protobuf.Timestamp")
}

/// The fields of a path in requests.
fn find(descriptor: &MessageDescriptor, path: &str) -> Result<Vec<FieldDescriptor>> {
    // The same rules as for a field of the answers.
    FieldPath::compile(descriptor, path)?;
    let mut fields = Vec::new();
    let mut at = descriptor.clone();
    for name in path.split('.') {
        let Some(field) = field(&at, name) else {
            return Err(Error::internal("a field that was found is gone"));
        };
        if let Kind::Message(inner) = field.kind() {
            at = inner;
        }
        fields.push(field);
    }
    Ok(fields)
}

/// The number in a field of a request, if it is set; a timestamp counts nanoseconds.
fn number(request: &DynamicMessage, path: &[FieldDescriptor]) -> Option<u64> {
    let (field, inner) = path.split_first()?;
    if !request.has_field(field) {
        return None;
    }
    let value = request.get_field(field).into_owned();
    if let (Value::Message(message), false) = (&value, inner.is_empty()) {
        return number(message, inner);
    }
    match value {
        Value::U32(n) => Some(u64::from(n)),
        Value::U64(n) => Some(n),
        Value::I32(n) => u64::try_from(n).ok(),
        Value::I64(n) => u64::try_from(n).ok(),
        Value::Message(stamp) => {
            let seconds = stamp.get_field_by_number(1)?.as_i64()?;
            let nanos = stamp.get_field_by_number(2)?.as_i32()?;
            let nanos = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
            u64::try_from(nanos).ok()
        }
        _ => None,
    }
}

/// A request of the fields in the pipeline file; each by itself, so that an error names it.
fn build(
    fields: &serde_json::Map<String, Json>,
    descriptor: &MessageDescriptor,
) -> Result<DynamicMessage> {
    for (name, value) in fields {
        let one: serde_json::Map<String, Json> =
            [(name.clone(), value.clone())].into_iter().collect();
        if let Err(error) = DynamicMessage::deserialize(descriptor.clone(), Json::Object(one)) {
            let known: Vec<String> = descriptor.fields().map(|f| f.name().to_owned()).collect();
            return Err(Error::config(format!(
                "the request does not fit: path=request.{name} message={}",
                descriptor.full_name()
            ))
            .because(error)
            .hint(if known.is_empty() {
                "the request has no fields".to_owned()
            } else {
                format!("its fields: {}", known.join(", "))
            }));
        }
    }
    DynamicMessage::deserialize(descriptor.clone(), Json::Object(fields.clone()))
        .map_err(|error| Error::config("the request does not fit: path=request").because(error))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
