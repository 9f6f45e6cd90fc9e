//! Voice and video among flows: by the application that the exporter names, else by the ports that calls use, else by
//! class.

use std::sync::Arc;

use datafusion::arrow::array::StringArray;
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;

use super::{Arg, Ints, Returns, Spec, Texts, extent, finish};

pub(super) const SPECS: &[Spec] = &[Spec::of(
    "media",
    &[Arg::Int, Arg::Int, Arg::Int, Arg::Int, Arg::Text],
    Returns::Text,
    "media(dscp, ip_protocol, src_port, dst_port, app_name) → voice or video, else NULL: by the application's name where there is one, else by the UDP ports of calls (RTP 5004, 5005 and 16384–32767, Teams, Zoom, Meet), else by the class of UDP (EF, VA; AF4x, CS4)",
    media,
)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Voice,
    Video,
}

/// What an application that was recognised is; one that is neither is neither, whatever its class and ports.
fn of_application(name: &str) -> Option<Kind> {
    let name = name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if has(&["audio", "voice", "voip"]) {
        Some(Kind::Voice)
    } else if has(&["video", "telepresence", "webex", "zoom", "teams", "meeting", "facetime"]) {
        Some(Kind::Video)
    } else {
        None
    }
}

/// What DSCP says (RFC 4594, RFC 5865).
fn of_class(dscp: i64) -> Option<Kind> {
    match dscp {
        46 | 44 => Some(Kind::Voice),
        32 | 34 | 36 | 38 => Some(Kind::Video),
        _ => None,
    }
}

/// What a port of UDP says, of itself or together with the other one.
fn of_ports(one: i64, other: i64, dscp: Option<i64>) -> Option<Kind> {
    let single = |port| match port {
        // Microsoft Teams: audio and video, of its relays and of its clients
        3_479 | 50_000..=50_019 => Some(Kind::Voice),
        3_480 | 50_020..=50_039 => Some(Kind::Video),
        // Zoom, Google Meet: all media on the same
        8_801..=8_810 | 19_302..=19_309 => Some(Kind::Video),
        _ => None,
    };
    let is_rtp = |port| (16_384..=32_767).contains(&port);
    let rtp = (is_rtp(one) && is_rtp(other)) || [one, other].iter().any(|port| matches!(port, 5_004 | 5_005));
    let of_rtp = || rtp.then(|| dscp.and_then(of_class).unwrap_or(Kind::Voice));
    single(one).or_else(|| single(other)).or_else(of_rtp)
}

fn kind(
    dscp: Option<i64>,
    protocol: Option<i64>,
    ports: [Option<i64>; 2],
    application: Option<&str>,
) -> Option<Kind> {
    if let Some(name) = application.filter(|name| !name.is_empty()) {
        return of_application(name);
    }
    if protocol != Some(17) {
        return None;
    }
    let by_ports = ports[0].zip(ports[1]).and_then(|(one, other)| of_ports(one, other, dscp));
    by_ports.or_else(|| dscp.and_then(of_class))
}

fn media(args: &[ColumnarValue], rows: usize) -> Result<ColumnarValue> {
    let (rows, constant) = extent(args, rows);
    let (dscp, protocol) = (Ints::of(&args[0])?, Ints::of(&args[1])?);
    let (src, dst) = (Ints::of(&args[2])?, Ints::of(&args[3])?);
    let application = Texts::of(&args[4])?;
    let name = |row: usize| {
        let ports = [src.get(row), dst.get(row)];
        kind(dscp.get(row), protocol.get(row), ports, application.get(row)).map(|kind| match kind {
            Kind::Voice => "voice",
            Kind::Video => "video",
        })
    };
    finish(Arc::new((0..rows).map(name).collect::<StringArray>()), constant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_goes_before_the_ports_and_these_before_the_class() {
        let of = |dscp, protocol, src, dst, application| {
            kind(Some(dscp), Some(protocol), [Some(src), Some(dst)], application)
        };
        // a download that marks itself EF is known for what it is
        assert_eq!(of(46, 17, 20_000, 20_002, Some("bittorrent")), None);
        assert_eq!(of(0, 6, 40_000, 443, Some("ms-teams-audio")), Some(Kind::Voice));
        assert_eq!(of(0, 17, 40_000, 443, Some("webex-meeting")), Some(Kind::Video));
        assert_eq!(of(0, 17, 16_384, 32_766, None), Some(Kind::Voice));
        assert_eq!(of(34, 17, 16_384, 32_766, Some("")), Some(Kind::Video));
        // one port in the range is a coincidence
        assert_eq!(of(0, 17, 20_000, 53, None), None);
        assert_eq!(of(0, 17, 41_000, 3_479, None), Some(Kind::Voice));
        assert_eq!(of(46, 17, 3_480, 41_000, None), Some(Kind::Video));
        assert_eq!(of(46, 17, 9, 9, None), Some(Kind::Voice));
        assert_eq!(of(46, 6, 5_004, 5_004, None), None);
        assert_eq!(kind(None, None, [None; 2], None), None);
    }
}
