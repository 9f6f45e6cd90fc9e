//! Names of the numbers that flows carry, and text for their bits. A number without a name comes back as its digits:
//! nothing is lost in a GROUP BY.

use std::sync::Arc;

use datafusion::arrow::array::StringBuilder;
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;
use pgwire::api::Type;
use weir_schemas::names;

use super::{Arg, Ints, Returns, Spec, extent, finish};

const TEXT: Returns = Returns::Text;

pub(super) static SPECS: &[Spec] = &[
    Spec::of(
        "dscp_name",
        &[Arg::Int],
        TEXT,
        "dscp_name(dscp) → EF, AF41, CS0 …; digits where it has no name",
        |args, rows| byte_names(args, rows, names::dscp_name),
    ),
    Spec::of("ecn_name", &[Arg::Int], TEXT, "ecn_name(ecn) → Not-ECT, ECT(0), ECT(1), CE", |args, rows| {
        byte_names(args, rows, names::ecn_name)
    }),
    Spec::of(
        "protocol_name",
        &[Arg::Int],
        TEXT,
        "protocol_name(ip_protocol) → tcp, udp, icmp …",
        |args, rows| byte_names(args, rows, names::protocol_name),
    ),
    Spec::of(
        "port_name",
        &[Arg::Int, Arg::Int],
        TEXT,
        "port_name(port, ip_protocol) → https, domain …; digits where it has no name",
        |args, rows| {
            let (rows, constant) = extent(args, rows);
            let (ports, protocols) = (Ints::of(&args[0])?, Ints::of(&args[1])?);
            let mut builder = StringBuilder::new();
            for row in 0..rows {
                let Some(port) = ports.get(row) else {
                    builder.append_null();
                    continue;
                };
                let protocol = protocols.get(row).and_then(|protocol| u8::try_from(protocol).ok());
                match u16::try_from(port)
                    .ok()
                    .zip(protocol)
                    .and_then(|(port, protocol)| names::port_name(port, protocol))
                {
                    Some(name) => builder.append_value(name),
                    None => builder.append_value(port.to_string()),
                }
            }
            finish(Arc::new(builder.finish()), constant)
        },
    ),
    Spec::of(
        "tcp_flags_text",
        &[Arg::Int],
        TEXT,
        "tcp_flags_text(tcp_flags) → SYN,ACK; empty for none",
        |args, rows| numbers(args, rows, |flags| Some(tcp_flags(flags))),
    ),
    Spec::of(
        "forwarding_status_name",
        &[Arg::Int],
        TEXT,
        "forwarding_status_name(forwarding_status) → forwarded, dropped-acl-deny … (RFC 7270)",
        |args, rows| byte_names(args, rows, names::forwarding_status_name),
    ),
    Spec::of(
        "flow_end_reason_name",
        &[Arg::Int],
        TEXT,
        "flow_end_reason_name(flow_end_reason) → idle-timeout, active-timeout …",
        |args, rows| byte_names(args, rows, names::flow_end_reason_name),
    ),
    Spec::of(
        "drop_reason_name",
        &[Arg::Int],
        TEXT,
        "drop_reason_name(drop_reason) → the sFlow discard reason's name",
        |args, rows| {
            numbers(args, rows, |reason| {
                Some(
                    u32::try_from(reason)
                        .ok()
                        .and_then(names::drop_reason_name)
                        .map_or(reason.to_string(), str::to_owned),
                )
            })
        },
    ),
    Spec::of(
        "icmp_type_name",
        &[Arg::Int, Arg::Int],
        TEXT,
        "icmp_type_name(icmp_type, ip_protocol) → echo-request …",
        |args, rows| {
            let (rows, constant) = extent(args, rows);
            let (types, protocols) = (Ints::of(&args[0])?, Ints::of(&args[1])?);
            let mut builder = StringBuilder::new();
            for row in 0..rows {
                let byte = |value: Option<i64>| value.and_then(|value| u8::try_from(value).ok());
                let name = byte(types.get(row))
                    .zip(byte(protocols.get(row)))
                    .and_then(|(kind, protocol)| names::icmp_type_name(kind, protocol));
                match (types.get(row), name) {
                    (None, _) => builder.append_null(),
                    (Some(_), Some(name)) => builder.append_value(name),
                    (Some(kind), None) => builder.append_value(kind.to_string()),
                }
            }
            finish(Arc::new(builder.finish()), constant)
        },
    ),
];

/// Functions that PostgreSQL clients call on its catalogue.
pub(super) static CATALOG: &[Spec] = &[
    Spec::of(
        "format_type",
        &[Arg::Int, Arg::Int],
        TEXT,
        "format_type(oid, typmod) → a type's SQL name",
        |args, rows| numbers(args, rows, |oid| u32::try_from(oid).ok().map(type_name)),
    ),
    Spec::of("pg_get_userbyid", &[Arg::Int], TEXT, "pg_get_userbyid(oid) → the user", |args, rows| {
        numbers(args, rows, |_| Some("weir".to_owned()))
    }),
];

/// A type's name as `\d` prints it.
fn type_name(oid: u32) -> String {
    let Some(kind) = Type::from_oid(oid) else { return format!("oid({oid})") };
    let name = match kind {
        Type::BOOL => "boolean",
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::VARCHAR => "character varying",
        Type::TIME => "time without time zone",
        Type::TIMESTAMP => "timestamp without time zone",
        Type::TIMESTAMPTZ => "timestamp with time zone",
        Type::BOOL_ARRAY => "boolean[]",
        Type::INT2_ARRAY => "smallint[]",
        Type::INT4_ARRAY => "integer[]",
        Type::INT8_ARRAY => "bigint[]",
        Type::FLOAT8_ARRAY => "double precision[]",
        Type::TIMESTAMPTZ_ARRAY => "timestamp with time zone[]",
        _ => {
            return match kind.name().strip_prefix('_') {
                Some(item) => format!("{item}[]"),
                None => kind.name().to_owned(),
            };
        }
    };
    name.to_owned()
}

fn numbers(
    args: &[ColumnarValue],
    rows: usize,
    text: impl Fn(i64) -> Option<String>,
) -> Result<ColumnarValue> {
    let (rows, constant) = extent(args, rows);
    let values = Ints::of(&args[0])?;
    let mut builder = StringBuilder::new();
    for row in 0..rows {
        builder.append_option(values.get(row).and_then(&text));
    }
    finish(Arc::new(builder.finish()), constant)
}

fn byte_names(
    args: &[ColumnarValue],
    rows: usize,
    name: fn(u8) -> Option<&'static str>,
) -> Result<ColumnarValue> {
    numbers(args, rows, |value| {
        Some(u8::try_from(value).ok().and_then(name).map_or(value.to_string(), str::to_owned))
    })
}

/// The names of the TCP control bits, in the order of a connection's life.
fn tcp_flags(flags: i64) -> String {
    const NAMES: [(i64, &str); 9] = [
        (0x02, "SYN"),
        (0x10, "ACK"),
        (0x08, "PSH"),
        (0x20, "URG"),
        (0x01, "FIN"),
        (0x04, "RST"),
        (0x40, "ECE"),
        (0x80, "CWR"),
        (0x100, "NS"),
    ];
    NAMES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}
