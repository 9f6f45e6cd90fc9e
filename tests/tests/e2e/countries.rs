//! Countries: a database that the operator names, asked in SQL and ranked.

use std::fs;

use weir_tests::netflow5::{Flow, datagram};
use weir_tests::weir::Setup;

/// Made by `mmdb_writer`, see the README beside it: 10.0.0.0/8 is DE, but 10.0.0.128/25 AT and 10.6.0.0/16 FR.
const DATABASE: &[u8] = include_bytes!("../../../aggregator/src/testdata/countries.mmdb");

#[test]
fn traffic_is_ranked_by_country() {
    let setup = Setup::new();
    let database = setup.folder().join("countries.mmdb");
    fs::write(&database, DATABASE).unwrap();
    let configuration = format!(
        "[aggregate]\ncountries = {database:?}\n\
         dimensions = [\"src_addr\", \"src_country\", \"src_country+dst_country\"]\ndistinct = [\"src_addr per src_country\"]\n"
    );
    let setup = setup.config(&configuration);
    let weir = setup.start();
    let flows = [
        Flow::new([10, 1, 0, 1], 100),
        Flow::new([10, 1, 0, 2], 200),
        Flow::new([10, 0, 0, 129], 50),
        Flow::new([10, 6, 0, 1], 7),
        Flow::new([192, 0, 2, 1], 3),
    ];
    weir.send(&datagram(0, &flows));
    weir.until_numbers("select count(*) from flows", &[5]);
    let by_country = [["DE", "300"], ["AT", "50"], ["FR", "7"], ["", "3"]];
    assert_eq!(
        weir.sql("select country(src_addr), sum(bytes) from flows group by 1 order by 2 desc"),
        by_country
    );
    let ranked =
        "select country, bytes from top_talkers_1d where dimension = 'src_country' order by bytes desc";
    assert_eq!(weir.sql(ranked), by_country);
    let pairs =
        "select count(*), count(country) from top_talkers_1d where dimension = 'src_country+dst_country'";
    assert_eq!(weir.numbers(pairs), [4, 3]);
    let sources = "select distinct_count from distinct_1h where country = 'DE'";
    assert_eq!(weir.sql(sources), [["2"]]);
    assert_eq!(weir.sql("select country('10.6.7.8'), country(null)"), [["FR", ""]]);
    assert!(weir.stop().success());
}

#[test]
fn without_a_database_country_says_what_to_do() {
    let setup = Setup::new();
    let weir = setup.start();
    let error = weir.try_sql("select country('10.6.7.8')").unwrap_err();
    assert!(error.contains("aggregate.countries"), "{error}");
    assert!(weir.stop().success());
}
