//! What the types of fields are: how their values are read, and what is one value though it is a message.

use prost_reflect::{FieldDescriptor, Kind as Type, MessageDescriptor, OneofDescriptor};

use crate::formats::protobuf::{fill::Kind, table::Op};

/// The messages of google.protobuf that are one value.
pub(in crate::formats::protobuf) enum WellKnown {
    Timestamp,
    Duration,
    /// A value that may be missing, in field 1.
    Wrapper,
    /// What has no columns of its own, and becomes JSON.
    Json,
}

impl WellKnown {
    pub(in crate::formats::protobuf) fn of(message: &MessageDescriptor) -> Option<Self> {
        Some(match message.full_name() {
            "google.protobuf.Timestamp" => Self::Timestamp,
            "google.protobuf.Duration" => Self::Duration,
            "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int64Value"
            | "google.protobuf.UInt64Value"
            | "google.protobuf.Int32Value"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.BoolValue"
            | "google.protobuf.StringValue"
            | "google.protobuf.BytesValue" => Self::Wrapper,
            "google.protobuf.Any"
            | "google.protobuf.Struct"
            | "google.protobuf.Value"
            | "google.protobuf.ListValue" => Self::Json,
            _ => return None,
        })
    }
}

/// How values of a type are read, and what their cells hold; none for messages.
pub(in crate::formats::protobuf) fn value_of(field: &FieldDescriptor) -> Option<(Op, Kind)> {
    Some(match field.kind() {
        Type::Double => (Op::Fixed64, Kind::F64),
        Type::Float => (Op::Fixed32, Kind::F32),
        Type::Int32 => (Op::Varint32, Kind::I32),
        Type::Int64 => (Op::Varint64, Kind::I64),
        Type::Uint32 => (Op::Varint32, Kind::U32),
        Type::Uint64 => (Op::Varint64, Kind::U64),
        Type::Sint32 => (Op::Zigzag32, Kind::I32),
        Type::Sint64 => (Op::Zigzag64, Kind::I64),
        Type::Fixed32 => (Op::Fixed32, Kind::U32),
        Type::Fixed64 => (Op::Fixed64, Kind::U64),
        Type::Sfixed32 => (Op::Fixed32, Kind::I32),
        Type::Sfixed64 => (Op::Fixed64, Kind::I64),
        Type::Bool => (Op::Bool, Kind::Bool),
        Type::String => (Op::Text, Kind::Text),
        Type::Bytes => (Op::Bytes, Kind::Bytes),
        Type::Enum(of) => (Op::Varint32, Kind::Enum(of)),
        Type::Message(_) => return None,
    })
}

pub(super) fn is_wide(kind: &Kind) -> bool {
    matches!(kind, Kind::I64 | Kind::U64 | Kind::F64)
}

/// The oneof of a field that is one, and not proto3's `optional`.
pub(in crate::formats::protobuf) fn oneof_of(field: &FieldDescriptor) -> Option<OneofDescriptor> {
    field
        .containing_oneof()
        .filter(|oneof| !oneof.is_synthetic())
}
