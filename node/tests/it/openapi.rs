//! The OpenAPI document.

use serde_json::Value;

use crate::fake::serve;

async fn document() -> Value {
    let served = serve().await;
    reqwest::get(served.url("/openapi.json")).await.unwrap().json().await.unwrap()
}

/// Every `$ref` in the document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(members) => {
            if let Some(Value::String(to)) = members.get("$ref") {
                found.push(to.clone());
            }
            members.values().for_each(|member| references(member, found));
        }
        _ => {}
    }
}

#[tokio::test]
async fn every_method_is_described_with_its_schemas() {
    let document = document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let add = &document["paths"]["/v1/counter/{key}/add"]["post"];
    assert_eq!(add["operationId"], "counter.add");
    assert_eq!(add["requestBody"]["required"], true);
    let by = &add["requestBody"]["content"]["application/json"]["schema"]["properties"]["by"];
    assert_eq!(by["maximum"], i64::MAX);
    let get = &document["paths"]["/v1/counter/{key}/get"]["post"];
    assert_eq!(get["requestBody"]["required"], false);
    let names = |method: &Value| {
        let parameters = method["parameters"].as_array().unwrap().clone();
        parameters.iter().map(|it| it["$ref"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let freshness = "#/components/parameters/Freshness".to_owned();
    assert!(names(get).contains(&freshness) && !names(add).contains(&freshness));
    for status in
        ["200", "400", "404", "408", "409", "412", "413", "415", "422", "429", "500", "503"]
    {
        assert!(add["responses"].get(status).is_some(), "{status}");
    }
    assert!(get["responses"].get("412").is_none(), "a query has no condition");
    assert!(add["responses"]["200"]["headers"].get("ETag").is_some());
    let names = |method: &Value| method["parameters"].to_string().contains("/IfMatch");
    assert!(names(add) && !names(get));
}

#[tokio::test]
async fn every_reference_leads_somewhere() {
    let document = document().await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.iter().any(|to| to == "#/components/schemas/How"), "{found:?}");
    for to in found {
        let pointer = to.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
    }
}
