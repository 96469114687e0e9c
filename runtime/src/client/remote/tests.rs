//! The client against nodes that answer with their name, and share one state of the cluster.

use std::sync::Mutex;

use bytes::Bytes;
use mainstay_protocol::control::ClusterState;
use mainstay_protocol::message::Mode;

use super::*;
use crate::router::tests::{call, kinds, safe, state};
use crate::transport::control::ControlHandler;
use crate::transport::loopback::{CLUSTER, Node, Plan, node, small, success, until};
use crate::transport::requests::Inbound;

type Shared = Arc<Mutex<ClusterState>>;

async fn member(name: &'static str, state: &Shared) -> Node {
    let state = Arc::clone(state);
    let control: ControlHandler = Arc::new(move |_, body| {
        let state = state.lock().unwrap().clone();
        Box::pin(async move {
            let ControlBody::Map { have } = body else { return Err("no".to_owned()) };
            Ok(ControlAnswer::Map((state.version > have).then(|| Box::new(state))))
        })
    });
    let names = move |inbound| {
        if let Inbound::Request(envelope) = inbound {
            envelope.reply.send(Ok(success(Bytes::from(name))));
        }
    };
    Node::of(Plan { name, control, ..Plan::default() }, names).await
}

fn quick() -> Config {
    Config {
        connect_timeout: Duration::from_secs(5),
        map_every: Duration::from_millis(100),
        map_timeout: Duration::from_millis(500),
        transport: small(64),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_straight_to_the_owner_and_survives_the_death_of_its_seed() {
    let shared: Shared = Arc::new(Mutex::new(state(0, &[], None)));
    let (first, second) = (member("n1", &shared).await, member("n2", &shared).await);
    let members = [("n1", first.addr.to_string()), ("n2", second.addr.to_string())];
    *shared.lock().unwrap() = state(1, &members, Some("n2"));
    let seeds = [first.addr.to_string()];
    let client = Client::connect_with(&seeds, kinds(), quick()).await.unwrap();
    let port = client.port();
    let done = port.call(call("a")).await.unwrap();
    assert_eq!((done.success.value, done.served_by), ("n2".into(), Some(node("n2"))));
    first.kill().await;
    // the map goes on: by the other member, which was never a seed
    let third = member("n3", &shared).await;
    let members = [("n2", second.addr.to_string()), ("n3", third.addr.to_string())];
    *shared.lock().unwrap() = state(2, &members, Some("n3"));
    until(|| client.map_version() == 2).await;
    assert_eq!(port.call(call("a")).await.unwrap().served_by, Some(node("n3")));
    // and calls, when their owner dies and another takes over
    third.kill().await;
    let members = [("n2", second.addr.to_string())];
    *shared.lock().unwrap() = state(3, &members, Some("n2"));
    let done = port.call(Call { mode: Mode::Query, ..safe("a") }).await.unwrap();
    assert_eq!(done.served_by, Some(node("n2")));
}

#[tokio::test]
async fn a_client_without_a_ready_cluster_says_so() {
    let none: [&str; 0] = [];
    let error = Client::connect(&none, kinds()).await.unwrap_err();
    assert_eq!(error, ConnectError::NoAddress);
    let config = Config { connect_timeout: Duration::from_millis(200), ..quick() };
    let error = Client::connect_with(&["127.0.0.1:1"], kinds(), config).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }));
}

#[tokio::test]
async fn identities_of_clients_learn_their_cluster() {
    let identity = Identity::client("c".to_owned());
    assert_eq!(identity.cluster(), None);
    identity.set_cluster(CLUSTER);
    assert_eq!(identity.cluster(), Some(CLUSTER));
}
