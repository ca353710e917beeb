//! `understudy config`: settings shown, changed and checked.

use std::path::Path;

use serde::Serialize;
use understudy_client::{Client, ClientError};
use understudy_node::config::check_file;
use understudy_rpc::v1;

use crate::args::{ConfigCommand, Output};
use crate::exit::Exit;
use crate::output::{Grid, print, print_json};

/// Carries out one of them. `connect` is called by those that need a cluster.
pub async fn run(
    command: ConfigCommand,
    output: Output,
    connect: impl AsyncFnOnce() -> Result<Client, ClientError>,
) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Show { name } => show(&connect().await?, output, name.as_deref()).await,
        ConfigCommand::Set { assignments } => {
            let mut settings = std::collections::HashMap::new();
            for (name, value) in assignments {
                if settings.insert(name.clone(), value).is_some() {
                    return Err(ClientError::Invalid { message: format!("{name} is given twice; give it once") }.into());
                }
            }
            let request = v1::SetSettingsRequest { settings, reset: Vec::new() };
            set(&connect().await?, output, request).await
        }
        ConfigCommand::Reset { names } => {
            let request = v1::SetSettingsRequest { settings: std::collections::HashMap::new(), reset: names };
            set(&connect().await?, output, request).await
        }
        ConfigCommand::Check { file } => check(output, &file),
    }
}

async fn show(client: &Client, output: Output, name: Option<&str>) -> anyhow::Result<Exit> {
    let response = client.show_settings(name.unwrap_or_default()).await?;
    match (output, name) {
        (Output::Json, _) => print_json(&response.settings.iter().map(JsonSetting::from).collect::<Vec<_>>())?,
        (Output::Table, Some(_)) => print(&response.settings.iter().map(one).collect::<String>())?,
        (Output::Table, None) => print(&all(&response))?,
    }
    Ok(Exit::Done)
}

async fn set(client: &Client, output: Output, request: v1::SetSettingsRequest) -> anyhow::Result<Exit> {
    let response = client.set_settings(request).await?;
    match output {
        Output::Json => print_json(&JsonChanged::from(&response))?,
        Output::Table => print(&changed(&response))?,
    }
    if !response.warning.is_empty() {
        eprintln!("warning: {}", response.warning);
    }
    Ok(Exit::Done)
}

fn check(output: Output, file: &Path) -> anyhow::Result<Exit> {
    let errors: Vec<String> = check_file(file).iter().map(ToString::to_string).collect();
    match output {
        Output::Json => print_json(&JsonChecked { ok: errors.is_empty(), errors: &errors })?,
        Output::Table if errors.is_empty() => print(&format!("{} is right\n", file.display()))?,
        Output::Table => {
            eprintln!("{}", errors.iter().map(|error| format!("error: {error}")).collect::<Vec<_>>().join("\n"))
        }
    }
    Ok(if errors.is_empty() { Exit::Done } else { Exit::Failed })
}

/// An empty text would look like no text.
fn quoted(value: &str) -> String {
    if value.is_empty() { "\"\"".to_owned() } else { value.to_owned() }
}

fn all(response: &v1::ShowSettingsResponse) -> String {
    let mut text = String::new();
    for scope in ["cluster", "server"] {
        let title = match scope {
            "cluster" => format!("settings of the cluster, generation {}:\n", response.generation),
            _ => format!("\nsettings of server {}:\n", response.answered_by),
        };
        let mut grid = Grid::new(&["NAME", "VALUE", "ORIGIN", "BOUNDS"]);
        for setting in response.settings.iter().filter(|setting| setting.scope == scope) {
            let pending = if setting.pending_restart { " (pending restart)" } else { "" };
            let value = format!("{}{pending}", quoted(&setting.value));
            grid.row(vec![setting.name.clone(), value, setting.origin.clone(), setting.bounds.clone()]);
        }
        text.push_str(&title);
        text.push_str(&grid.render());
    }
    let problems = response.settings.iter().filter(|setting| !setting.problem.is_empty());
    let problems: String = problems.map(|setting| format!("{}: {}\n", setting.name, setting.problem)).collect();
    if problems.is_empty() { text } else { format!("{text}\n{problems}") }
}

fn one(setting: &v1::Setting) -> String {
    let pending = if setting.pending_restart { "yes" } else { "no" };
    let mut lines = vec![
        ("name", setting.name.clone()),
        ("value", quoted(&setting.value)),
        ("default", quoted(&setting.default_value)),
        ("takes", setting.bounds.clone()),
        ("origin", setting.origin.clone()),
        ("scope", setting.scope.clone()),
        ("change", setting.takes_effect.clone()),
        ("pending", pending.to_owned()),
        ("what", setting.doc.clone()),
    ];
    if !setting.problem.is_empty() {
        lines.push(("problem", setting.problem.clone()));
    }
    lines.into_iter().map(|(name, value)| format!("{name:<9}{value}\n")).collect()
}

fn changed(response: &v1::SetSettingsResponse) -> String {
    if response.changes.is_empty() {
        return format!("nothing is different, at generation {}\n", response.generation);
    }
    let mut grid = Grid::new(&["NAME", "BEFORE", "NOW", "TAKES EFFECT"]);
    for change in &response.changes {
        grid.row(vec![change.name.clone(), quoted(&change.before), quoted(&change.after), change.takes_effect.clone()]);
    }
    format!("changed at generation {}:\n{}", response.generation, grid.render())
}

#[derive(Serialize)]
struct JsonChecked<'a> {
    ok: bool,
    errors: &'a [String],
}

#[derive(Serialize)]
struct JsonSetting<'a> {
    name: &'a str,
    value: &'a str,
    default: &'a str,
    unit: &'a str,
    bounds: &'a str,
    origin: &'a str,
    scope: &'a str,
    pending_restart: bool,
    takes_effect: &'a str,
    doc: &'a str,
    problem: &'a str,
}

impl<'a> From<&'a v1::Setting> for JsonSetting<'a> {
    fn from(setting: &'a v1::Setting) -> Self {
        Self {
            name: &setting.name,
            value: &setting.value,
            default: &setting.default_value,
            unit: &setting.unit,
            bounds: &setting.bounds,
            origin: &setting.origin,
            scope: &setting.scope,
            pending_restart: setting.pending_restart,
            takes_effect: &setting.takes_effect,
            doc: &setting.doc,
            problem: &setting.problem,
        }
    }
}

#[derive(Serialize)]
struct JsonChanged<'a> {
    generation: u64,
    changes: Vec<JsonChange<'a>>,
    warning: &'a str,
}

#[derive(Serialize)]
struct JsonChange<'a> {
    name: &'a str,
    before: &'a str,
    after: &'a str,
    takes_effect: &'a str,
}

impl<'a> From<&'a v1::SetSettingsResponse> for JsonChanged<'a> {
    fn from(response: &'a v1::SetSettingsResponse) -> Self {
        let change = |change: &'a v1::SettingChange| JsonChange {
            name: &change.name,
            before: &change.before,
            after: &change.after,
            takes_effect: &change.takes_effect,
        };
        let changes = response.changes.iter().map(change).collect();
        Self { generation: response.generation, changes, warning: &response.warning }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str, scope: &str) -> v1::Setting {
        v1::Setting {
            name: name.to_owned(),
            value: value.to_owned(),
            origin: "default".to_owned(),
            scope: scope.to_owned(),
            bounds: "anything".to_owned(),
            ..v1::Setting::default()
        }
    }

    #[test]
    fn settings_are_a_table_for_each_scope() {
        let mut rule = setting("synchronous_standby_names", "", "cluster");
        rule.problem = "nobody can acknowledge".to_owned();
        let mut level = setting("log_level", "info", "server");
        level.pending_restart = true;
        let response =
            v1::ShowSettingsResponse { settings: vec![rule, level], answered_by: "n1".to_owned(), generation: 7 };
        assert_eq!(
            all(&response),
            "settings of the cluster, generation 7:\n\
             NAME                       VALUE  ORIGIN   BOUNDS\n\
             synchronous_standby_names  \"\"     default  anything\n\
             \n\
             settings of server n1:\n\
             NAME       VALUE                   ORIGIN   BOUNDS\n\
             log_level  info (pending restart)  default  anything\n\
             \n\
             synchronous_standby_names: nobody can acknowledge\n"
        );
    }

    #[test]
    fn a_change_says_what_was_and_what_is() {
        let change = v1::SettingChange {
            name: "sync_mode".to_owned(),
            before: "preferred".to_owned(),
            after: "required".to_owned(),
            takes_effect: "at once".to_owned(),
        };
        let response = v1::SetSettingsResponse { generation: 9, changes: vec![change], warning: String::new() };
        assert_eq!(
            changed(&response),
            "changed at generation 9:\n\
             NAME       BEFORE     NOW       TAKES EFFECT\n\
             sync_mode  preferred  required  at once\n"
        );
        assert!(changed(&v1::SetSettingsResponse::default()).starts_with("nothing is different"));
    }
}
