//! What the lines of an explanation have in common: they cover the datagram, and say what the decoder did.

use proptest::prelude::*;

use super::*;
use crate::decode::testing::{corpus, meta};
use crate::explain::listing::gap;
use crate::generate::{Generator, GeneratorConfig};

const SENDER: &str = "192.0.2.1";

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// An IPFIX message of one domain.
fn ipfix(sets: &[Vec<u8>]) -> Vec<u8> {
    let sets = sets.concat();
    let mut message = words(&[10, u16::try_from(16 + sets.len()).unwrap(), 0x6553, 0xf100, 0, 1, 0, 7]);
    message.extend(sets);
    message
}

fn set(id: u16, content: &[u8]) -> Vec<u8> {
    let mut set = words(&[id, u16::try_from(4 + content.len()).unwrap()]);
    set.extend(content);
    set
}

fn explain(explainer: &mut Explainer, datagram: &[u8]) -> Explained {
    let explained = explainer.explain(datagram, &meta(SENDER));
    assert_eq!(gap(&explained.lines, datagram.len()), None, "{:#?}", explained.lines);
    explained
}

fn new() -> Explainer {
    Explainer::new(DecodeConfig { clock_check: false, ..DecodeConfig::default() })
}

/// The line of that name; `n` tells lines of one name apart.
fn line<'a>(explained: &'a Explained, name: &str, n: usize) -> &'a Line {
    let mut named = explained.lines.iter().filter(|line| line.name == name);
    named.nth(n).unwrap_or_else(|| panic!("no {n}. {name} in {:#?}", explained.lines))
}

fn rule(line: &Line) -> &str {
    line.rule.as_deref().unwrap_or_default()
}

/// Element 8, 4 octets; 2, reduced to 3; 82, variable; 12235 of enterprise 9, variable; 210; 291, a basicList; the
/// reverse of 2.
fn template() -> Vec<u8> {
    set(
        2,
        &words(&[
            256,
            7,
            8,
            4,
            2,
            3,
            82,
            0xffff,
            0x8000 | 12235,
            0xffff,
            0,
            9,
            210,
            1,
            291,
            0xffff,
            0x8002,
            4,
            0,
            29305,
        ]),
    )
}

fn record(text: &[u8]) -> Vec<u8> {
    let mut data = vec![10, 0, 0, 1, 0, 1, 0, 1, b'x', 255];
    data.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    data.extend(text);
    data.push(0);
    // allOf, sourceTransportPort, two octets each
    data.extend([9, 3, 0, 7, 0, 2, 0, 80, 1, 187]);
    data.extend([0, 0, 0, 5]);
    data
}

#[test]
fn ipfix_fields_have_their_element_column_and_rule() {
    let mut data = record(b"example.org");
    data.extend([0, 0, 0]);
    let explained = explain(&mut new(), &ipfix(&[template(), set(256, &data)]));
    assert_eq!(explained.protocol, "IPFIX");
    assert_eq!(line(&explained, "observation domain", 0).value.as_deref(), Some("7"));
    let title = line(&explained, "template 256", 0);
    assert_eq!(title.value.as_deref(), Some("7 fields, records of at least 15 octets"));
    // in the template, then in the record
    let enterprise = line(&explained, "appHTTPHost", 0);
    assert_eq!(enterprise.element.as_ref().unwrap().enterprise, 9);
    assert_eq!(
        (enterprise.length, rule(enterprise)),
        (8, "enterprise bit: its number follows (RFC 7011 §3.2)")
    );
    let src = line(&explained, "sourceIPv4Address", 1);
    assert_eq!(
        (src.value.as_deref(), src.column.as_deref()),
        (Some("10.0.0.1"), Some("src_addr, reverse row: dst_addr"))
    );
    let packets = line(&explained, "packetDeltaCount", 1);
    assert_eq!((packets.value.as_deref(), packets.length), (Some("256"), 3));
    assert!(rule(packets).contains("reduced-size encoding: 3 of 8 octets (RFC 7011 §6.2)"), "{packets:?}");
    assert!(rule(line(&explained, "value length", 0)).contains("short form"));
    assert!(rule(line(&explained, "value length", 1)).contains("long form"));
    let host = line(&explained, "appHTTPHost", 1);
    assert_eq!((host.value.as_deref(), host.column.as_deref()), (Some("\"example.org\""), Some("http_host")));
    assert_eq!(line(&explained, "list semantic", 0).value.as_deref(), Some("3 (allOf)"));
    let ports = explained.lines.iter().filter(|line| line.name == "sourceTransportPort");
    let ports: Vec<_> = ports.map(|line| line.value.as_deref().unwrap()).collect();
    assert_eq!(ports, ["80", "443"]);
    let reverse = line(&explained, "reversePacketDeltaCount", 1);
    assert!(rule(reverse).contains("RFC 5103"), "{reverse:?}");
    assert_eq!(reverse.column.as_deref(), Some("reverse row: packets"));
    assert_eq!(line(&explained, "padding", 0).length, 3);
    let heading = line(&explained, "record 1", 0);
    assert_eq!(heading.column.as_deref(), Some("row 1 of flows"));
    assert_eq!(line(&explained, "reverse direction", 0).column.as_deref(), Some("row 2 of flows"));
    assert_eq!(explained.rows[0].as_ref().unwrap().num_rows(), 2);
    assert!(rule(line(&explained, "sampling rate", 0)).contains("unknown"));
}

#[test]
fn data_is_held_for_its_template_and_listed_when_it_comes() {
    let mut explainer = new();
    let held = explain(&mut explainer, &ipfix(&[set(256, &record(b"a"))]));
    assert!(rule(line(&held, "data without a template", 0)).contains("RFC 7011 §9.3"));
    assert_eq!(line(&held, "held", 0).value.as_deref(), Some("1 sets wait for their template"));
    let explained = explain(&mut explainer, &ipfix(&[template()]));
    let set = line(&explained, "data set of template 256 that waited", 0);
    assert!(rule(set).contains("held since 2023-11-14T22:13:20.123456Z"), "{set:?}");
    assert!(explained.lines.iter().any(|line| line.held && line.name == "sourceIPv4Address"));
    assert_eq!(explained.rows[0].as_ref().unwrap().num_rows(), 2);
    // of later data the template's owner is known, and an equal one is a refresh
    let explained = explain(&mut explainer, &ipfix(&[template(), set_after(256)]));
    assert!(rule(line(&explained, "template 256", 0)).contains("the same as in datagram 2"));
    let explained = explain(&mut explainer, &ipfix(&[set_after(256)]));
    assert_eq!(rule(line(&explained, "data set of template 256", 0)), "its template came with datagram 3");
    // a template behind its data
    let mut other = new();
    let explained = explain(&mut other, &ipfix(&[set_after(256), template()]));
    assert!(rule(line(&explained, "data set of template 256", 0)).contains("stands after it"));
    let mut meta = meta(SENDER);
    // another port decodes by it when the first one has been silent for a while
    meta.sender_port += 1;
    meta.received_us += 60_000_000;
    let explained = other.explain(&ipfix(&[set_after(256)]), &meta);
    assert!(rule(line(&explained, "data set of template 256", 0)).contains("port 50000"));
}

fn set_after(id: u16) -> Vec<u8> {
    set(id, &record(b"b"))
}

#[test]
fn what_is_wrong_is_said_where_it_breaks_in_the_decoders_words() {
    for (datagram, name, why) in [
        (vec![0], "datagram", "too_short"),
        (words(&[10, 20, 0, 0]), "header", "too_short"),
        (words(&[9, 0, 0]), "header", "too_short"),
        (words(&[5, 1, 0]), "header", "too_short"),
        (words(&[8, 0, 0]), "datagram", "netflow8"),
        (words(&[77, 0]), "datagram", "unknown_version"),
        (words(&[0, 4, 0]), "datagram", "old_sflow"),
        (words(&[0, 5, 0, 3]), "datagram", "bad_agent"),
        (words(&[10, 99, 0, 0, 0, 0, 0, 0]), "message", "bad_length"),
        (ipfix(&[words(&[256, 99, 1])]), "not read", "bad_set_length"),
        (ipfix(&[words(&[2, 12, 256, 9, 8, 4])]), "not read", "bad_template: 9 fields take 40 octets"),
        (ipfix(&[words(&[3, 14, 256, 1, 0, 8, 4])]), "not read", "bad_template: 0 scope fields of 1"),
        (ipfix(&[template(), set(256, &[1, 2, 3])]), "record", "truncated_record"),
        (
            words(&[0, 5, 0, 1, 0x0a00, 1, 0, 0, 0, 1, 0, 5, 0, 1, 0, 1, 0, 999]),
            "not read",
            "truncated_record",
        ),
    ] {
        let explained = explain(&mut new(), &datagram);
        let problem = explained.lines.iter().find(|line| line.kind == Kind::Problem && line.name == name);
        let problem = problem.unwrap_or_else(|| panic!("{:#?}", explained.lines));
        assert!(rule(problem).starts_with(why), "{problem:?}");
        let reason = why.split(':').next().unwrap();
        let said = explained.outcome.rejected.is_some_and(|rejected| rejected.as_str() == reason)
            || explained.lines.iter().any(|line| line.value.as_ref().is_some_and(|v| v.ends_with(reason)));
        assert!(said, "{why}: {:?}", explained.outcome);
    }
}

#[test]
fn rule_07_a_withdrawal_is_shown_as_ignored() {
    let mut explainer = new();
    let explained = explain(&mut explainer, &ipfix(&[template(), set(2, &words(&[256, 0])), set_after(256)]));
    assert!(rule(line(&explained, "withdrawal of template 256", 0)).contains("ignored"));
    assert_eq!(explained.rows[0].as_ref().unwrap().num_rows(), 2);
}

#[test]
fn rule_30_the_arithmetic_of_uptimes_is_shown() {
    // uptime 1000, export 1700000000 s; first 400, last 1100: after the export, a signed distance
    let mut datagram = words(&[5, 1, 0, 1000, 0x6553, 0xf100, 0, 0, 0, 9, 0x0102, 0x4064]);
    let mut record = vec![0; 48];
    record[24..28].copy_from_slice(&400_u32.to_be_bytes());
    record[28..32].copy_from_slice(&1_100_u32.to_be_bytes());
    record[37] = 0x12;
    record[38] = 6;
    record[39] = 0xb9;
    datagram.extend(record);
    let explained = explain(&mut new(), &datagram);
    let first = line(&explained, "flowStartSysUpTime", 0);
    assert_eq!(first.value.as_deref(), Some("400 → 2023-11-14T22:13:19.400000Z"));
    assert!(rule(first).contains("(sysUptime 1000 − 400 = 600) ms"), "{first:?}");
    let last = line(&explained, "flowEndSysUpTime", 0);
    assert!(rule(last).contains("(sysUptime 1000 − 1100 = -100) ms"), "{last:?}");
    assert_eq!(line(&explained, "tcpControlBits", 0).value.as_deref(), Some("18 (SYN,ACK)"));
    assert_eq!(line(&explained, "protocolIdentifier", 0).value.as_deref(), Some("6 (tcp)"));
    let tos = line(&explained, "ipClassOfService", 0).value.as_deref();
    assert_eq!(tos, Some("185 (0xb9: DSCP 46 EF, ECN 1 ECT(1))"));
    assert_eq!(line(&explained, "sampling", 0).value.as_deref(), Some("mode 1, interval 100"));
    assert_eq!(line(&explained, "sampling rate", 0).value.as_deref(), Some("100, from header"));
    assert!(line(&explained, "tcpControlBits", 0).element.is_none());
}

/// The datagrams of every generated protocol.
fn generated(flows: u64) -> Vec<Vec<u8>> {
    let config = GeneratorConfig { flows, ..GeneratorConfig::default() };
    let mut generator = Generator::new(&config);
    let mut all = Vec::new();
    let mut buffer = Vec::new();
    while generator.next(1_700_000_000_000_000, &mut buffer).is_some() {
        all.push(buffer.clone());
    }
    all
}

#[test]
fn generated_datagrams_are_covered_and_each_record_has_its_row() {
    let mut explainer = new();
    for datagram in generated(2_000) {
        let explained = explain(&mut explainer, &datagram);
        assert!(explained.lines.iter().all(|line| line.kind != Kind::Problem), "{:#?}", explained.lines);
        let columns =
            explained.lines.iter().filter(|line| line.kind != Kind::Note || line.name.contains("reverse"));
        let rows = columns
            .filter(|line| line.column.as_ref().is_some_and(|column| column.starts_with("row")))
            .count();
        let made: usize = explained.rows.iter().flatten().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, made);
    }
}

#[test]
fn datagrams_cut_at_every_octet_are_covered() {
    for datagram in generated(400) {
        for cut in 0..datagram.len().min(700) {
            explain(&mut new(), &datagram[..cut]);
        }
    }
}

#[test]
fn the_corpus_is_covered_whole_and_cut() {
    for case in corpus("") {
        let mut explainer = new();
        for datagram in &case.datagrams {
            let explained = explain(&mut explainer, datagram);
            // what the rows say is what a decoder says
            assert_eq!(explained.number, explainer.number);
        }
        let mut cut = new();
        for datagram in &case.datagrams {
            explain(&mut cut, &datagram[..datagram.len() / 2]);
            explain(&mut cut, &datagram[..datagram.len().saturating_sub(3)]);
        }
    }
}

proptest! {
    #[test]
    fn random_datagrams_are_covered(
        version in prop::sample::select(vec![1_u16, 5, 7, 9, 10, 0, 8, 3]),
        mut datagram in prop::collection::vec(any::<u8>(), 2..400),
        plausible in any::<bool>(),
    ) {
        datagram[..2].copy_from_slice(&version.to_be_bytes());
        let length = u16::try_from(datagram.len()).unwrap();
        if plausible && version == 10 && datagram.len() > 4 {
            datagram[2..4].copy_from_slice(&length.to_be_bytes());
        }
        if plausible && version == 0 && datagram.len() > 8 {
            datagram[2..8].copy_from_slice(&[0, 5, 0, 0, 0, 1]);
        }
        explain(&mut new(), &datagram);
    }

    #[test]
    fn changed_datagrams_are_covered(at in any::<prop::sample::Index>(), which in any::<prop::sample::Index>(), octet: u8) {
        let all = SAMPLES.get_or_init(|| generated(60));
        let mut explainer = new();
        let which = which.index(all.len());
        for (number, datagram) in all.iter().enumerate() {
            let mut datagram = datagram.clone();
            if number == which {
                let at = at.index(datagram.len());
                datagram[at] = octet;
            }
            explain(&mut explainer, &datagram);
        }
    }
}

static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();

/// Elements of a user's own file have their name, type and column in the explanation too.
#[test]
fn a_users_own_elements_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("elements.tsv");
    std::fs::write(&file, "50000\t7\troundTrip\tunsigned32\tquantity\tmilliseconds\trtt_us\n").unwrap();
    let config = DecodeConfig { elements: vec![file], clock_check: false, ..DecodeConfig::default() };
    let mut explainer = Explainer::new(config);
    let template = set(2, &words(&[256, 1, 0x8007, 4, 0, 50_000]));
    let explained = explain(&mut explainer, &ipfix(&[template, set(256, &[0, 0, 0, 25])]));
    let in_template = line(&explained, "roundTrip", 0);
    assert_eq!(in_template.element.as_ref().unwrap().data_type, "unsigned32");
    let in_record = line(&explained, "roundTrip", 1);
    assert_eq!(in_record.column.as_deref(), Some("rtt_us"));
    assert!(in_record.value.as_deref().unwrap().starts_with("25"), "{in_record:?}");
}
