use super::*;

#[test]
fn the_example_is_valid() {
    let cluster = Cluster::parse(EXAMPLE, |_| None).unwrap();
    assert_eq!((cluster.servers().count(), cluster.hosts.len()), (3, 4));
    assert_eq!(cluster.warnings(), Vec::<String>::new());
}
