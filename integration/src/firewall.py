# Prints what firewalld knows, run-time and permanent, as one JSON object: a part's name → its settings that are not empty.
# One process for all of it: each call of firewall-cmd takes 0.2 s.
import json

from firewall.client import FirewallClient

client = FirewallClient()
permanent = client.config()
parts = {"default zone": client.getDefaultZone()}


def note(name, settings):
    kept = {}
    for key, value in settings.getSettingsDict().items():
        if value and key not in ("short", "description"):
            # firewalld gives sets in any order.
            kept[key] = sorted(value) if isinstance(value, list) else value
    parts[name] = json.dumps(kept, sort_keys=True)


for zone in client.getZones():
    note(f"runtime zone {zone}", client.getZoneSettings(zone))
for zone in permanent.getZoneNames():
    note(f"permanent zone {zone}", permanent.getZoneByName(zone).getSettings())
for policy in client.getPolicies():
    note(f"runtime policy {policy}", client.getPolicySettings(policy))
for policy in permanent.getPolicyNames():
    note(f"permanent policy {policy}", permanent.getPolicyByName(policy).getSettings())
parts["runtime direct"] = json.dumps(sorted(client.getAllRules()))
parts["permanent direct"] = json.dumps(sorted(permanent.direct().getAllRules()))
print(json.dumps(parts))
