package config

// Origin is the place that settings come from. It decides whether they may name any program, and names the place in
// errors.
//
// A program is a library that is loaded (module-path) or a command that is run (pin-source exec:) as this user. Flags,
// the environment and the config file may name any program. All other places are data: they may only name programs that
// the config file lists under modules and commands, or that the environment or the config file sets for the same key.
// The zero Origin is data.
type Origin struct {
	name          string
	namesPrograms bool
	showsPIN      string // what would show a PIN in this place to others
	direct        bool   // the setting broker does not count
}

var (
	// Flags are the arguments of a command, the references to keys among them.
	Flags = Origin{name: "the command line", namesPrograms: true, showsPIN: "the process list"}
	// PluginConfig is plugin config and the id of the key, both from Notation's list of keys. They are data.
	PluginConfig = Origin{name: "plugin config", showsPIN: "Notation's signing key list"}

	environmentOrigin = Origin{name: "the environment", namesPrograms: true}
)

// Stored returns the origin of settings in a request, or in a file that the commands write or read, which are data.
// where names the place in errors.
func Stored(where string) Origin { return Origin{name: where, showsPIN: where} }

// Direct returns the same origin for a command that changes keys or certificates. It reaches their module itself,
// whatever the setting broker says.
func (o Origin) Direct() Origin {
	o.direct = true
	return o
}

// uri returns the origin of the attributes of a key's URI in this place.
func (o Origin) uri() Origin {
	switch o.name {
	case Flags.name:
		o.name = keyURI
	case PluginConfig.name:
		o.name = "the key id"
	default:
		o.name = keyURI + " in " + o.name
	}
	return o
}
