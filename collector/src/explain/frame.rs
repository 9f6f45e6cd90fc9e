//! A sampled packet header layer by layer. Which layers there are, and where each begins, is what the decoder's own
//! walk says ([`frame::walk`]); the fields of each are those of its specification.

use weir_schemas::names;

use super::listing::Listing;
use super::values;
use crate::decode::frame::{self, Layer, Link, has};

/// A layer as the decoder met it.
struct Step {
    layer: Layer,
    start: usize,
    /// Before any tunnel: its values go to the plain columns.
    outside: bool,
}

/// Lists the octets up to `end`.
pub(super) fn list(listing: &mut Listing<'_>, link: Link, end: usize) {
    let begin = listing.at();
    let bytes = listing.peek(listing.left(end));
    let origin = bytes.as_ptr().addr();
    let mut steps: Vec<Step> = Vec::new();
    let frame = frame::walk(link, bytes, |layer, rest, frame| {
        if layer != Layer::Done {
            let start = begin + rest.as_ptr().addr().saturating_sub(origin);
            steps.push(Step { layer, start, outside: frame.tunnel().is_none() });
        }
    });
    for (at, step) in steps.iter().enumerate() {
        let stop = steps.get(at + 1).map_or(end, |next| next.start).min(end);
        let last = at + 1 == steps.len();
        let mut section = Section { listing, stop, last, outside: step.outside, tunnel: frame.tunnel() };
        section.layer(step.layer);
        if last {
            let truncated =
                if frame.has(has::TRUNCATED) { "the header ends before its protocols do" } else { "" };
            let rule = if truncated.is_empty() { "not looked at" } else { truncated };
            listing.rest(end, "payload", rule);
        } else {
            listing.rest(stop, "options and extensions", "skipped by their length");
        }
    }
    listing.rest(end, "payload", "not looked at");
    if frame.has(has::TRUNCATED) {
        listing.note("truncated").value("true").to("frame_truncated");
    }
    if let Some(tunnel) = frame.tunnel() {
        listing.note("tunnel").value(tunnel).to("tunnel");
    }
}

/// One layer.
struct Section<'a, 'b> {
    listing: &'a mut Listing<'b>,
    stop: usize,
    /// No layer follows: what is left is payload.
    last: bool,
    outside: bool,
    tunnel: Option<&'static str>,
}

impl Section<'_, '_> {
    /// The column by where the layer is; inside of a tunnel there are fewer.
    fn column(&self, outer: &'static str, inner: &'static str) -> &'static str {
        if self.outside { outer } else { inner }
    }

    /// A field of the layer; false where it is cut off.
    fn field(&mut self, n: usize, name: &str, column: &str, show: impl FnOnce(&[u8]) -> String) -> bool {
        if self.listing.left(self.stop) < n {
            return false;
        }
        let text = show(self.listing.peek(n));
        let line = self.listing.field(n, name).value(text);
        if !column.is_empty() {
            line.to(column);
        }
        true
    }

    fn decimal(&mut self, n: usize, name: &str, column: &str) -> bool {
        self.field(n, name, column, |octets| number(octets).to_string())
    }

    fn layer(&mut self, layer: Layer) {
        match layer {
            Layer::Ethernet => {
                let heading = self.listing.open("Ethernet");
                let (dst, src) = (self.column("dst_mac", ""), self.column("src_mac", ""));
                let _ = self.field(6, "destination", dst, mac)
                    && self.field(6, "source", src, mac)
                    && self.ether_type();
                self.listing.close(heading);
            }
            Layer::EtherType(kind) => self.after_type(kind),
            Layer::Llc => {
                let heading = self.listing.open("802.2 LLC");
                let _ = self.field(1, "DSAP", "", hex)
                    && self.field(1, "SSAP", "", hex)
                    && self.field(1, "control", "", hex)
                    && self.field(3, "SNAP organisation", "", hex)
                    && self.ether_type();
                self.listing.close(heading);
            }
            Layer::Mpls => {
                let heading = self.listing.open("MPLS (RFC 3032 §2.1)");
                let column = self.column("mpls_labels, mpls_exp", "");
                let mut bottom = false;
                while !bottom
                    && self.field(4, "label stack entry", column, |octets| {
                        let entry = number(octets);
                        bottom = entry & 0x100 != 0;
                        let (label, exp, ttl) = (entry >> 12, entry >> 9 & 7, entry & 0xff);
                        format!("label {label}, EXP {exp}, bottom {}, TTL {ttl}", u8::from(bottom))
                    })
                {}
                self.listing.close(heading);
            }
            Layer::Pseudowire => {
                if self.tunnel == Some("eompls") && self.listing.left(self.stop) == 4 {
                    self.field(4, "pseudowire control word", "", hex);
                    if let Some(line) = self.listing.last() {
                        line.rule(
                            "RFC 4448 §4.6: told by its first nibble, what the labels mean nobody says",
                        );
                    }
                }
            }
            Layer::Ip => match self.listing.peek(1) {
                [first] if first >> 4 == 4 => self.ipv4(),
                [first] if first >> 4 == 6 => self.ipv6(),
                _ => {}
            },
            Layer::Ppp => {
                if self.listing.peek(2) == [0xff, 0x03] {
                    self.field(2, "PPP address and control", "", hex);
                }
                let short = self.listing.peek(1).first().is_some_and(|first| first & 1 == 1);
                self.field(if short { 1 } else { 2 }, "PPP protocol", "", hex);
            }
            Layer::Transport(protocol) => self.transport(protocol),
            Layer::Done => {}
        }
    }

    fn ether_type(&mut self) -> bool {
        // the column has the type behind the tags
        let tag = matches!(self.listing.peek(2), [0x81, 0] | [0x88, 0xa8] | [0x91..=0x93, 0]);
        let column = if tag { "" } else { self.column("ether_type", "") };
        self.field(2, "type", column, |octets| {
            let kind = number(octets);
            let name = u16::try_from(kind).ok().and_then(names::ether_type_name);
            values::with_name(kind, name).replacen(&kind.to_string(), &format!("{kind:#06x}"), 1)
        })
    }

    fn after_type(&mut self, kind: u16) {
        match kind {
            0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => {
                let heading = self.listing.open(format!("VLAN tag ({kind:#06x})"));
                let column = self.column("frame_vlans", "");
                let _ = self.field(2, "tag control", column, |octets| {
                    let tag = number(octets);
                    format!("VLAN {}, priority {}, drop eligible {}", tag & 0xfff, tag >> 13, tag >> 12 & 1)
                }) && self.ether_type();
                self.listing.close(heading);
            }
            0x8864 => {
                let heading = self.listing.open("PPPoE (RFC 2516 §4)");
                let _ = self.field(1, "version and type", "", hex)
                    && self.field(1, "code", "", hex)
                    && self.decimal(2, "session", "")
                    && self.decimal(2, "length", "");
                self.listing.close(heading);
            }
            0x88e7 => {
                let heading = self.listing.open("802.1ah I-TAG");
                let column = self.column("vni", "");
                let _ = self.field(1, "flags", "", hex) && self.decimal(3, "service id", column);
                self.listing.close(heading);
            }
            _ => {}
        }
    }

    /// RFC 791 §3.1
    fn ipv4(&mut self) {
        let heading = self.listing.open("IPv4 (RFC 791 §3.1)");
        let (tos, ttl) = (self.column("tos", ""), self.column("ip_ttl", ""));
        let protocol = self.column("ip_protocol", "inner_ip_protocol");
        let (src, dst) =
            (self.column("src_addr", "inner_src_addr"), self.column("dst_addr", "inner_dst_addr"));
        let length = self.column("ip_bytes", "");
        let fragment = {
            let word = self.listing.peek(8).get(6..8).map_or(0, number);
            word & 0x3fff != 0 && self.outside
        };
        let (id, offset) = if fragment { ("fragment_id", "fragment_offset") } else { ("", "") };
        let _ = self.field(1, "version and header length", "", |octets| {
            let first = number(octets);
            format!("4, {} octets", (first & 0xf) * 4)
        }) && self.field(1, "ToS", tos, show_tos)
            && self.decimal(2, "total length", length)
            && self.decimal(2, "identification", id)
            && self.field(2, "flags and fragment offset", offset, |octets| {
                let word = number(octets);
                let mut flags = Vec::new();
                if word & 0x4000 != 0 {
                    flags.push("DF");
                }
                if word & 0x2000 != 0 {
                    flags.push("MF");
                }
                let flags = if flags.is_empty() { "none".to_owned() } else { flags.join(",") };
                format!("flags {flags}, offset {}", word & 0x1fff)
            })
            && self.decimal(1, "TTL", ttl)
            && self.field(1, "protocol", protocol, show_protocol)
            && self.field(2, "header checksum", "", hex)
            && self.field(4, "source", src, v4)
            && self.field(4, "destination", dst, v4);
        self.listing.close(heading);
    }

    /// RFC 8200 §3
    fn ipv6(&mut self) {
        let heading = self.listing.open("IPv6 (RFC 8200 §3)");
        let protocol = self.column("ip_protocol", "inner_ip_protocol");
        let (src, dst) =
            (self.column("src_addr", "inner_src_addr"), self.column("dst_addr", "inner_dst_addr"));
        let (first, ttl) = (self.column("tos, ipv6_flow_label", ""), self.column("ip_ttl", ""));
        let length = self.column("ip_bytes", "");
        let _ = self.field(4, "version, traffic class, flow label", first, |octets| {
            let word = number(octets);
            let tos = u8::try_from(word >> 20 & 0xff).unwrap_or(0);
            format!("6, {}, flow label {}", values::tos(tos), word & 0xf_ffff)
        }) && self.field(2, "payload length", length, |octets| {
            format!("{} (and 40 of the header)", number(octets))
        }) && self.field(1, "next header", protocol, show_protocol)
            && self.decimal(1, "hop limit", ttl)
            && self.field(16, "source", src, v6)
            && self.field(16, "destination", dst, v6);
        if self.listing.left(self.stop) > 0 {
            self.listing.rest(
                self.stop,
                "extension headers",
                "walked by their lengths (RFC 8200 §4); the protocol is the last next header",
            );
        }
        self.listing.close(heading);
    }

    fn ports(&mut self) -> bool {
        let (src, dst) =
            (self.column("src_port", "inner_src_port"), self.column("dst_port", "inner_dst_port"));
        self.decimal(2, "source port", src) && self.decimal(2, "destination port", dst)
    }

    fn transport(&mut self, protocol: u8) {
        let name = names::protocol_name(protocol).unwrap_or("transport").to_uppercase();
        let heading = self.listing.open(name);
        match protocol {
            6 => {
                let flags = self.column("tcp_flags", "");
                let _ = self.ports()
                    && self.decimal(4, "sequence number", "")
                    && self.decimal(4, "acknowledgement number", "")
                    && self.field(1, "header length", "", |octets| {
                        format!("{} octets", (number(octets) >> 4) * 4)
                    })
                    && self.field(1, "flags", flags, |octets| {
                        values::tcp_flags(u16::try_from(number(octets)).unwrap_or(0))
                    })
                    && self.decimal(2, "window", "")
                    && self.field(2, "checksum", "", hex)
                    && self.decimal(2, "urgent pointer", "");
            }
            17 | 136 => {
                let _ = self.ports()
                    && self.decimal(2, "length", "")
                    && self.field(2, "checksum", "", hex)
                    && self.tunnel_in_udp();
            }
            33 | 132 => {
                self.ports();
            }
            1 | 58 => {
                let column = self.column("icmp_type", "");
                let _ = self.field(1, "type", column, |octets| {
                    let kind = number(octets);
                    let name = u8::try_from(kind).ok().and_then(|kind| names::icmp_type_name(kind, protocol));
                    values::with_name(kind, name)
                }) && self.decimal(1, "code", self.column("icmp_code", ""))
                    && self.field(2, "checksum", "", hex);
            }
            47 => {
                let _ = self.field(2, "flags and version", "", hex) && self.ether_type_plain();
                let rest = self.listing.left(self.stop);
                if !self.last && rest > 0 {
                    let column = if self.tunnel == Some("nvgre") { "vni" } else { "" };
                    self.field(rest, "optional GRE fields", column, hex);
                }
            }
            _ => {}
        }
        self.listing.close(heading);
    }

    fn ether_type_plain(&mut self) -> bool {
        self.field(2, "protocol type", "", hex)
    }

    /// What stands between UDP and the packet inside.
    fn tunnel_in_udp(&mut self) -> bool {
        let Some(tunnel) = self.tunnel.filter(|_| self.outside) else { return true };
        let rest = self.listing.left(self.stop);
        match tunnel {
            // RFC 7348 §5, RFC 8926 §3.4
            "vxlan" | "geneve" if rest >= 8 => {
                self.field(4, &format!("{tunnel} flags and reserved"), "", hex)
                    && self.decimal(3, &format!("{tunnel} network identifier"), "vni")
                    && self.field(1, "reserved", "", hex)
            }
            "gtpu" | "l2tp" if rest > 0 && !self.last => {
                self.field(rest, &format!("{tunnel} header"), "", hex)
            }
            _ => true,
        }
    }
}

fn number(octets: &[u8]) -> u64 {
    octets.iter().take(8).fold(0, |value, octet| value << 8 | u64::from(*octet))
}

fn hex(octets: &[u8]) -> String {
    let mut text = String::from("0x");
    octets.iter().take(16).for_each(|octet| text.push_str(&format!("{octet:02x}")));
    if octets.len() > 16 {
        text.push('…');
    }
    text
}

fn mac(octets: &[u8]) -> String {
    octets.try_into().map_or_else(|_| hex(octets), |octets| weir_schemas::Mac(octets).to_string())
}

fn v4(octets: &[u8]) -> String {
    octets.try_into().map_or_else(|_| hex(octets), |octets| weir_schemas::Address::v4(octets).to_string())
}

fn v6(octets: &[u8]) -> String {
    octets.try_into().map_or_else(|_| hex(octets), |octets| weir_schemas::Address::v6(octets).to_string())
}

fn show_tos(octets: &[u8]) -> String {
    values::tos(octets.first().copied().unwrap_or(0))
}

fn show_protocol(octets: &[u8]) -> String {
    values::protocol(octets.first().copied().unwrap_or(0))
}
