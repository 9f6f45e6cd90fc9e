use super::*;

fn of(enterprise: u32, id: u16) -> &'static Element {
    Dictionary::builtin().lookup(enterprise, id).unwrap_or_else(|| panic!("no element {enterprise}:{id}"))
}

#[test]
fn the_registry_is_there_with_its_names_types_and_semantics() {
    use DataType::*;
    use Semantics::*;
    for (id, name, data_type, semantics, units) in [
        (1, "octetDeltaCount", Unsigned64, DeltaCounter, Some("octets")), // RFC 5102 §5.10.1
        (2, "packetDeltaCount", Unsigned64, DeltaCounter, Some("packets")),
        (4, "protocolIdentifier", Unsigned8, Identifier, None),
        (6, "tcpControlBits", Unsigned16, Flags, None), // RFC 9565 §2
        (7, "sourceTransportPort", Unsigned16, Identifier, None),
        (8, "sourceIPv4Address", Ipv4Address, Default, None),
        (27, "sourceIPv6Address", Ipv6Address, Default, None),
        (56, "sourceMacAddress", MacAddress, Default, None),
        (82, "interfaceName", String, Default, None),
        (85, "octetTotalCount", Unsigned64, TotalCounter, Some("octets")),
        (150, "flowStartSeconds", DateTimeSeconds, Default, Some("seconds")),
        (152, "flowStartMilliseconds", DateTimeMilliseconds, Default, Some("milliseconds")),
        (154, "flowStartMicroseconds", DateTimeMicroseconds, Default, Some("microseconds")),
        (156, "flowStartNanoseconds", DateTimeNanoseconds, Default, Some("nanoseconds")),
        (210, "paddingOctets", OctetArray, Default, None),
        (230, "natEvent", Unsigned8, Identifier, None), // RFC 8158 §5.2
        (276, "dataRecordsReliability", Boolean, Default, None), // RFC 5655 §6
        (291, "basicList", BasicList, List, None),      // RFC 6313 §4.5.1
        (315, "dataLinkFrameSection", OctetArray, Default, None), // RFC 7133 §3.2
        (350, "virtualStationName", String, Default, None),
        (439, "mibObjectValueCounter", Unsigned64, SnmpCounter, None), // RFC 8038 §11.2.2
        (495, "srhActiveSegmentIPv6", Ipv6Address, Default, None),     // RFC 9487 §5.1
        (520, "tcpOptionsFull", Unsigned256, Flags, None),             // RFC 9740 §4.1
        (533, "pathDelaySumDeltaMicroseconds", Unsigned64, DeltaCounter, Some("microseconds")), // RFC 9951
    ] {
        let element = of(IANA, id);
        assert_eq!(&*element.name, name);
        assert_eq!((element.data_type, element.semantics), (data_type, semantics), "{name}");
        assert_eq!(element.units.as_deref(), units, "{name}");
    }
    for unassigned in [0, 65, 69, 97, 105, 127, 416, 419, 534, 32767] {
        assert_eq!(Dictionary::builtin().lookup(IANA, unassigned), None, "{unassigned}");
    }
}

#[test]
fn counts_of_the_built_in_files() {
    let dictionary = Dictionary::builtin();
    let count = |enterprise| dictionary.iter().filter(|element| element.enterprise == enterprise).count();
    assert_eq!((count(IANA), count(REVERSE)), (502, 502));
    assert_eq!(dictionary.iter_v9().count(), 52);
    assert!(dictionary.iter().count() > 3000, "{}", dictionary.iter().count());
}

#[test]
fn names_and_numbers_lead_to_each_other() {
    let dictionary = Dictionary::builtin();
    for element in dictionary.iter() {
        assert_eq!(dictionary.by_name(&element.name), Some(element));
        assert_eq!(dictionary.lookup(element.enterprise, element.id), Some(element));
    }
    for element in dictionary.iter_v9() {
        assert_eq!(dictionary.by_name(&element.name), Some(element));
        assert_eq!(dictionary.lookup_v9(element.id), Some(element));
    }
    assert_eq!(dictionary.by_name("octetdeltacount"), None);
}

#[test]
fn the_files_are_sorted() {
    let sorted = |text: &str, key: fn(Vec<&str>) -> (u32, u32)| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let keys: Vec<_> = lines.map(|line| key(line.split('\t').collect())).collect();
        assert!(keys.is_sorted(), "out of order");
    };
    let by_id: fn(Vec<&str>) -> (u32, u32) = |columns| (0, columns[0].parse().unwrap());
    sorted(include_str!("../../data/iana.tsv"), by_id);
    sorted(include_str!("../../data/netflow9.tsv"), by_id);
    sorted(include_str!("../../data/enterprise.tsv"), |columns| {
        (columns[0].parse().unwrap(), columns[1].parse().unwrap())
    });
}

#[test]
fn a_reverse_element_is_the_iana_element_with_a_prefix() {
    let reverse = of(REVERSE, 1);
    assert_eq!((&*reverse.name, reverse.enterprise), ("reverseOctetDeltaCount", REVERSE));
    assert_eq!((reverse.data_type, reverse.semantics), (of(IANA, 1).data_type, of(IANA, 1).semantics));
    assert_eq!(Dictionary::builtin().lookup(REVERSE, 65), None);
    // YAF marks the reverse of its own elements by bit 14
    assert_eq!(&*of(6871, 14).name, "initialTCPFlags");
    assert_eq!(&*of(6871, 14 | 0x4000).name, "reverseInitialTCPFlags");
}

#[test]
fn netflow_v9_numbers_lead_to_v9_iana_ntop_and_cisco() {
    let dictionary = Dictionary::builtin();
    for (id, enterprise, name) in [
        (1, IANA, "octetDeltaCount"),
        (34, IANA, "samplingInterval"),
        (231, IANA, "initiatorOctets"),
        (33000, IANA, "ingressAclId"),
        (33002, IANA, "fwExtEvent"),
        (40000, IANA, "asaUsername"),
        (40001, IANA, "xlateSourceIPv4Address"),
        (56701, IANA, "paloAltoAppId"),
        (57595, NTOP, "CLIENT_NW_LATENCY_MS"),
        (45004, CISCO, "clientIPv4Address"),
    ] {
        let element = dictionary.lookup_v9(id).unwrap_or_else(|| panic!("no field type {id}"));
        assert_eq!((element.enterprise, &*element.name), (enterprise, name), "{id}");
    }
    for unknown in [0, 65, 32767, 32768, 57472, 65535] {
        assert_eq!(dictionary.lookup_v9(unknown), None, "{unknown}");
    }
    assert_eq!(dictionary.lookup(IANA, 40000), None, "a field type of v9 is not an IPFIX element");
}

#[test]
fn the_enterprise_elements_of_the_corpus_are_known() {
    for (enterprise, ids) in [
        (
            3054,
            &[
                110, 111, 126, 127, 146, 147, 160, 161, 162, 163, 176, 177, 182, 183, 184, 186, 187, 188,
                192, 193,
            ][..],
        ),
        (
            6871,
            &[
                14, 15, 18, 21, 33, 38, 39, 40, 100, 105, 289, 293, 500, 510, 16398, 16402, 16424, 16884,
                16894,
            ],
        ),
        (15397, &[1, 2, 3, 4, 15, 16, 21, 22, 25, 26, 28, 47]),
        (
            35632,
            &[109, 110, 118, 123, 127, 180, 188, 205, 209, 352, 360, 398, 460, 461, 489, 490, 493, 494, 495],
        ),
        (41916, &[4321]),
    ] {
        for id in ids {
            of(enterprise, *id);
        }
    }
    assert_eq!(of(3054, 193).data_type, DataType::Ipv4Address);
    assert_eq!(of(3054, 194).data_type, DataType::Ipv6Address, "one public list has it wrong");
    assert_eq!(of(3054, 126).data_type, DataType::Float32);
}

#[test]
fn data_types_and_semantics_have_one_name() {
    for data_type in DataType::ALL {
        assert_eq!(DataType::from_name(data_type.name()), Some(data_type));
        assert!(!data_type.may_be_reduced() || data_type.octets() > Some(1));
    }
    for semantics in Semantics::ALL {
        assert_eq!(Semantics::from_name(semantics.name()), Some(semantics));
    }
    assert_eq!(DataType::from_name("Unsigned8"), None);
}

#[test]
fn a_users_file_adds_and_replaces() {
    let mut dictionary = Dictionary::builtin().clone();
    let text = "# ours\r\n\r\n12356\t1\tfortiPolicy\tunsigned32\r\n\
        12356\t2\tfortiBytes\tunsigned64\tdeltaCounter\toctets\n\
        9\t12235\tappHost\tstring\t-\t-\thttp_host\n\
        netflow9\t60000\tmyField\tipv4Address\t\t\tnat_src_addr\n\
        0\t600\tmyDraftElement\tunsigned16\n";
    dictionary.extend_from_str(text, "mine.tsv").unwrap();
    assert_eq!(&*dictionary.lookup(12356, 1).unwrap().name, "fortiPolicy");
    assert_eq!(dictionary.lookup(12356, 2).unwrap().units.as_deref(), Some("octets"));
    assert_eq!(&*dictionary.lookup(9, 12235).unwrap().name, "appHost");
    assert_eq!(dictionary.by_name("appHTTPHost"), None, "the old name is gone");
    assert_eq!(dictionary.lookup_v9(60000).unwrap().data_type, DataType::Ipv4Address);
    assert_eq!(dictionary.lookup(IANA, 60000), None);
    assert_eq!(&*dictionary.lookup(REVERSE, 600).unwrap().name, "reverseMyDraftElement");
    assert_eq!(dictionary.lookup_v9(600), dictionary.lookup(IANA, 600));
    let column = |element: Option<&Element>| element.and_then(|element| element.column);
    assert_eq!(column(dictionary.lookup(9, 12235)), Some(FlowColumn::HttpHost));
    assert_eq!(column(dictionary.lookup_v9(60000)), Some(FlowColumn::NatSrcAddr));
    assert_eq!(column(dictionary.lookup(12356, 1)), None);
    assert!(
        dictionary.lookup(12356, 1).unwrap().from_user && !dictionary.lookup(9, 12236).unwrap().from_user
    );
}

#[test]
fn a_wrong_line_is_named_with_file_line_and_column() {
    for (line, position, problem) in [
        ("9 1 x string", 1, "no tab in this line: the columns are separated by tabs"),
        ("9\t1\tx", 5, "3 columns: at least id, name and type are needed"),
        ("9\t1\tx\tstring\t-\t-\t-\tmore", 20, "a column too many: \"more\""),
        (
            "9\t1\tx\tstring\t-\t-\thttphost",
            18,
            "there is no column \"httphost\"; the nearest is \"http_host\"",
        ),
        (
            "9\t1\tx\tunsigned32\t-\t-\thttp_host",
            22,
            "an element of type unsigned32 cannot fill the column \"http_host\"",
        ),
        (
            "9\t1\tx\tipv4Address\t-\t-\texporter_addr",
            23,
            "the column \"exporter_addr\" is filled by weir itself",
        ),
        (
            "9\t1\tx\tunsigned32\t-\toctets\trtt_us",
            27,
            "the column \"rtt_us\" holds microseconds: \"octets\" cannot be converted",
        ),
        ("cisco\t1\tx\tstring", 1, "\"cisco\" is not an enterprise number (nor \"netflow9\")"),
        ("29305\t1\tx\tstring", 1, "29305 is the reverse of IANA's element (RFC 5103): define that"),
        ("9\t65536\tx\tstring", 3, "\"65536\" is not an id from 0 to 65535"),
        ("9\t-1\tx\tstring", 3, "\"-1\" is not an id from 0 to 65535"),
        (
            "9\t32768\tx\tstring",
            3,
            "id 32768 is more than 32767; for a NetFlow v9 field type write netflow9 as the enterprise",
        ),
        ("9\t1\t\tstring", 5, "\"\" is not a name: 1 to 128 letters, digits, '_', '-' or '.'"),
        ("9\t1\t  a b\tstring", 7, "\"a b\" is not a name: 1 to 128 letters, digits, '_', '-' or '.'"),
        ("9\t1\tx\tuint32", 7, "\"uint32\" is not a data type; the nearest is \"unsigned32\""),
        ("9\t1\tx\tipv4Adress", 7, "\"ipv4Adress\" is not a data type; the nearest is \"ipv4Address\""),
        (
            "9\t1\tx\tstring\tcounter",
            14,
            "\"counter\" is not a semantics; one of default, quantity, totalCounter, deltaCounter, identifier, flags, \
             list, snmpCounter, snmpGauge",
        ),
        (
            "9\t1\toctetDeltaCount\tstring",
            5,
            "the name \"octetDeltaCount\" belongs to element 0:1; give this one another",
        ),
    ] {
        let mut dictionary = Dictionary::builtin().clone();
        let text = format!("# comment\n12356\t1\tfortiPolicy\tunsigned32\n{line}\n");
        let error = dictionary.extend_from_str(&text, "mine.tsv").unwrap_err();
        assert_eq!(error.to_string(), format!("mine.tsv:3:{position}: {problem}"));
        assert_eq!(dictionary.lookup(12356, 1), None, "nothing of a wrong file is taken");
    }
}

#[test]
fn an_element_is_defined_once_in_a_file() {
    let mut dictionary = Dictionary::builtin().clone();
    let error = dictionary.extend_from_str("7\t1\ta\tstring\n7\t1\tb\tstring\n", "mine.tsv").unwrap_err();
    assert_eq!(error.to_string(), "mine.tsv:2:1: the element is already on line 1");
}

#[test]
fn the_nearest_type_is_what_people_mean() {
    for (wrong, meant) in [
        ("u8", "unsigned8"),
        ("int64", "signed64"),
        ("f32", "float32"),
        ("Unsigned16", "unsigned16"),
        ("unsinged32", "unsigned32"),
        ("ip", "ipv4Address"),
        ("ipv6", "ipv6Address"),
        ("bytes", "octetArray"),
        ("bool", "boolean"),
        ("str", "string"),
        ("dateTimeMillisecond", "dateTimeMilliseconds"),
        ("mac", "macAddress"),
    ] {
        assert_eq!(nearest_type(wrong), meant, "{wrong}");
    }
    nearest_type("");
    nearest_type(&"x".repeat(100_000));
}

#[test]
fn a_file_is_read_and_a_missing_one_is_named() {
    let path = std::env::temp_dir().join(format!("weir-dictionary-{}.tsv", std::process::id()));
    std::fs::write(&path, "12356\t1\tfortiPolicy\tunsigned32\n").unwrap();
    let dictionary = Dictionary::with_files(std::slice::from_ref(&path)).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(dictionary.lookup(12356, 1).is_some() && dictionary.lookup(IANA, 1).is_some());

    let error = Dictionary::with_files(std::slice::from_ref(&path)).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("cannot read the dictionary {}: ", path.display())),
        "{error}"
    );
}
