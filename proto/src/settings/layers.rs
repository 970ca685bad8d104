//! Defaults, file and variables, laid over each other.

use std::collections::BTreeSet;

use serde_json::Value as Shape;
use toml::{Table, Value};

use super::{Mistakes, Settings, Vars};

const PREFIX: &str = "CHATBOX_";

/// Reads a configuration for a role (`CORE`, `EDGE`): its defaults, laid over by the TOML text, laid over by the variables.
///
/// # Errors
/// All mistakes that were found, each naming the setting or the variable, none showing a value.
pub fn load<T: Settings>(file: Option<&str>, role: &str, vars: &Vars) -> Result<T, Mistakes> {
    let mut table = parse(file.unwrap_or_default()).map_err(|mistake| Mistakes(vec![mistake]))?;
    let mut mistakes = Vec::new();
    // The file is read first on its own: what is wrong with it is reported as such, and what is right about it says which
    // elements its arrays have.
    let from_file = match read::<T>(&table) {
        Ok(config) => config,
        Err(mistake) => {
            mistakes.extend(all_mistakes::<T>(&table, mistake));
            T::default()
        }
    };
    let shape = serde_json::to_value(&from_file).unwrap_or(Shape::Null);
    let mut known = BTreeSet::new();
    let mut overlay = Overlay { role, vars, known: &mut known, mistakes: &mut mistakes };
    let before = table.clone();
    overlay.lay_over(&shape, &mut Vec::new(), &mut table);
    mistakes.extend(unknown_variables(role, vars, &known));
    if table != before
        && mistakes.is_empty()
        && let Err(mistake) = read::<T>(&table)
    {
        mistakes.extend(all_mistakes::<T>(&table, mistake));
    }
    if mistakes.is_empty() {
        read::<T>(&table).map_err(|mistake| Mistakes(vec![mistake]))
    } else {
        Err(Mistakes(mistakes))
    }
}

/// The place of a syntax error is named, its line is not shown: it may hold a secret.
fn parse(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let line =
            error.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.matches('\n').count() + 1);
        let rule = error.message().lines().next().unwrap_or("not valid TOML").to_owned();
        format!("line {line} of the configuration file: {rule}")
    })
}

fn read<T: Settings>(table: &Table) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|error| {
        let path = error.path().to_string();
        let rule = error.into_inner().message().trim().to_owned();
        if path == "." { rule } else { format!("{path}: {rule}") }
    })
}

/// serde stops at the first mistake. Every setting has a default, so each can be judged alone; what needs its neighbours (an
/// element of an array of tables) is judged with them.
fn all_mistakes<T: Settings>(table: &Table, first: String) -> Vec<String> {
    let mut found = BTreeSet::new();
    let mut alone = Vec::new();
    leaves(table, &mut Vec::new(), &mut alone);
    for single in alone {
        if let Err(mistake) = read::<T>(&single)
            && !mistake.contains("missing field")
        {
            found.insert(mistake);
        }
    }
    if found.is_empty() {
        found.insert(first);
    }
    found.into_iter().collect()
}

/// One table for each setting, with nothing but it.
fn leaves(table: &Table, path: &mut Vec<String>, found: &mut Vec<Table>) {
    for (name, value) in table {
        path.push(name.clone());
        if let Value::Table(inner) = value {
            leaves(inner, path, found);
        } else {
            let wrap = |inner, name: &String| Value::Table(Table::from_iter([(name.clone(), inner)]));
            if let Value::Table(single) = path.iter().rev().fold(value.clone(), wrap) {
                found.push(single);
            }
        }
        path.pop();
    }
}

struct Overlay<'a> {
    role: &'a str,
    vars: &'a Vars,
    known: &'a mut BTreeSet<String>,
    mistakes: &'a mut Vec<String>,
}

impl Overlay<'_> {
    /// Walks the settings and lays the variables over the table.
    fn lay_over(&mut self, shape: &Shape, path: &mut Vec<String>, table: &mut Table) {
        let Shape::Object(members) = shape else { return };
        for (name, member) in members {
            path.push(name.clone());
            match member {
                Shape::Object(_) => {
                    let inner = table.entry(name.as_str()).or_insert_with(|| Value::Table(Table::new()));
                    if let Value::Table(inner) = inner {
                        self.lay_over(member, path, inner);
                    }
                }
                Shape::Array(elements) if elements.iter().any(Shape::is_object) => {
                    if let Some(Value::Array(values)) = table.get_mut(name) {
                        self.lay_over_elements(elements, path, values);
                    }
                }
                Shape::Null | Shape::Bool(_) | Shape::Number(_) | Shape::String(_) | Shape::Array(_) => {
                    if let Some(value) = self.variable(path, member) {
                        table.insert(name.clone(), value);
                    }
                }
            }
            path.pop();
        }
    }

    fn lay_over_elements(&mut self, shapes: &[Shape], path: &mut Vec<String>, values: &mut [Value]) {
        for (index, (shape, value)) in shapes.iter().zip(values).enumerate() {
            path.push(index.to_string());
            if let Value::Table(element) = value {
                self.lay_over(shape, path, element);
            }
            path.pop();
        }
    }

    fn variable(&mut self, path: &[String], shape: &Shape) -> Option<Value> {
        let suffix = path.join("_").replace('-', "_").to_ascii_uppercase();
        let names = [format!("{PREFIX}{}_{suffix}", self.role), format!("{PREFIX}{suffix}")];
        let found = names
            .iter()
            .find_map(|name| self.vars.get(name).filter(|text| !text.is_empty()).map(|text| (name.clone(), text)));
        self.known.extend(names);
        let (name, text) = found?;
        match value_of(text, shape) {
            Ok(value) => Some(value),
            Err(rule) => {
                self.mistakes.push(format!("{name}: {rule}"));
                None
            }
        }
    }
}

fn value_of(text: &str, shape: &Shape) -> Result<Value, &'static str> {
    match shape {
        Shape::Bool(_) => text.parse().map(Value::Boolean).map_err(|_| "must be true or false"),
        Shape::Number(number) if number.is_f64() => text.parse().map(Value::Float).map_err(|_| "must be a number"),
        Shape::Number(_) => text.parse().map(Value::Integer).map_err(|_| "must be a whole number"),
        Shape::Array(_) if text.trim_start().starts_with('[') => {
            let table: Table =
                format!("list = {text}").parse().map_err(|_| "must be a list in TOML or separated by commas")?;
            table.get("list").cloned().ok_or("must be a list in TOML or separated by commas")
        }
        Shape::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        Shape::Null | Shape::String(_) | Shape::Object(_) => Ok(Value::String(text.to_owned())),
    }
}

/// A variable with the prefix of this binary that names no setting is a misspelt one. Kubernetes sets variables for
/// every service of a namespace; those of a service called `chatbox-edge` have the same prefix and are none of ours.
fn unknown_variables(role: &str, vars: &Vars, known: &BTreeSet<String>) -> Vec<String> {
    let prefix = format!("{PREFIX}{role}_");
    let of_kubernetes = |rest: &str| {
        rest == "PORT"
            || rest.starts_with("SERVICE_")
            || rest.strip_prefix("PORT_").is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()))
    };
    vars.keys()
        .filter(|name| name.strip_prefix(&prefix).is_some_and(|rest| !of_kubernetes(rest)) && !known.contains(*name))
        .map(|name| format!("{name}: there is no such setting"))
        .collect()
}

#[cfg(test)]
mod tests;
