"""What our launch file uses of `launch` and `launch_ros`, where these are not installed.

Everything remembers how it was made, and refuses what the real classes refuse; test_launch.py
makes the same mistakes with both where the real ones are there.
"""

import os
import types


class SubstitutionFailure(Exception):
    pass


class Substitution:
    pass


class LaunchConfiguration(Substitution):
    def __init__(self, variable_name, *, default=None):
        substitutions(variable_name)
        self.name, self.default = variable_name, default

    def perform(self, context):
        if self.name not in context.launch_configurations:
            if self.default is None:
                raise SubstitutionFailure(f"launch configuration '{self.name}' does not exist")
            return self.default
        return context.launch_configurations[self.name]


class ExecutableInPackage(Substitution):
    def __init__(self, executable, package):
        self.executable, self.package = executable, package

    def perform(self, context):
        found = [
            os.path.join(prefix, 'lib', self.package, self.executable)
            for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(':')
            if os.path.exists(f'{prefix}/share/ament_index/resource_index/packages/{self.package}')
        ]
        if not found:
            raise LookupError(f"package '{self.package}' not found")
        if not os.access(found[0], os.X_OK):
            raise SubstitutionFailure(f"executable '{self.executable}' not found")
        return found[0]


def substitutions(value):
    """A text, a substitution, or a list of them; TypeError for anything else."""
    if isinstance(value, (str, Substitution)):
        return [value]
    for item in value:  # TypeError for what is no list
        if not isinstance(item, (str, Substitution)):
            raise TypeError(f'{item!r} is neither a text nor a substitution')
    return list(value)


class LaunchDescription:
    def __init__(self, initial_entities=None, *, deprecated_reason=None):
        self.entities = list(initial_entities or ())


class LaunchContext:
    def __init__(self, *, argv=()):
        self.argv, self.launch_configurations = list(argv), {}


class OpaqueFunction:
    def __init__(self, *, function, args=None, kwargs=None):
        if not callable(function):
            raise TypeError("OpaqueFunction expected a callable for 'function'")
        self.function = function

    def execute(self, context):
        return self.function(context)


class SetEnvironmentVariable:
    def __init__(self, name, value):
        substitutions(name), substitutions(value)

    def execute(self, context):
        return None


class DeclareLaunchArgument:
    def __init__(self, name, *, default_value=None, description=None, choices=None):
        if choices is not None and not choices:
            raise RuntimeError('Provided choices arg is empty')
        if default_value is not None:
            substitutions(default_value)
            if isinstance(default_value, str) and choices and default_value not in choices:
                raise RuntimeError(f'Provided default_value "{default_value}" is not in choices')
        self.name, self.default, self.choices = name, default_value, choices
        self.description = description

    def execute(self, context):
        values = context.launch_configurations
        if self.name not in values:
            if self.default is None:
                raise RuntimeError(f'Required launch argument "{self.name}" was not provided.')
            values[self.name] = self.default
        if self.choices is not None and values[self.name] not in self.choices:
            raise RuntimeError(
                f'Argument "{self.name}" provided value "{values[self.name]}" is not valid. '
                f'Valid options are: {self.choices}'
            )


class ParameterFile:
    def __init__(self, param_file, *, allow_substs=False):
        if isinstance(param_file, (str, Substitution, list, tuple)):
            substitutions(param_file)
        elif not isinstance(param_file, (os.PathLike, bytes)):
            raise TypeError(f'Expected a path, not {param_file!r}')
        if not isinstance(allow_substs, bool):
            raise TypeError('Expected a bool for allow_subst')
        self.param_file = param_file


class ParameterValue:
    def __init__(self, value, *, value_type=None):
        scalar = isinstance(value, (str, int, float, bool))
        if scalar and value_type is not None and not isinstance(value, value_type):
            raise TypeError(f"value='{value}' is not an instance of {value_type}")
        self.value, self.value_type = value, value_type


class Node:
    def __init__(
        self,
        *,
        executable,
        package=None,
        name=None,
        namespace=None,
        parameters=None,
        remappings=None,
        arguments=None,
        **options,
    ):
        unknown = {*options} - {'exec_name', 'ros_arguments', 'output', 'condition', 'respawn'}
        if unknown:
            raise TypeError(f'unexpected keyword arguments {unknown}')
        for text in (executable, package, name, namespace):
            if text is not None:
                substitutions(text)
        if not isinstance(parameters, (list, type(None))):
            raise TypeError(f'Expected parameters to be a list, not {parameters!r}')
        for entry in parameters or ():
            if isinstance(entry, dict):
                for value in entry.values():
                    check_value(value)
            elif not isinstance(entry, ParameterFile):
                ParameterFile(entry)
        for rule in remappings or ():
            if not isinstance(rule, tuple) or len(rule) != 2:
                raise TypeError(f'remap_rule must be a tuple of length 2, not {rule!r}')
            substitutions(rule[0]), substitutions(rule[1])
        for argument in arguments or ():
            substitutions(argument)
        self.kwargs = {
            'package': package,
            'executable': executable,
            'name': name,
            'namespace': namespace,
            'parameters': parameters,
            'remappings': remappings,
            'arguments': arguments,
        }


def check_value(value) -> None:
    """TypeError for a parameter that launch_ros would not write."""
    if isinstance(value, (str, bool, int, float, bytes, Substitution, ParameterValue)):
        return
    if not isinstance(value, (list, tuple)):
        raise TypeError(f'Unexpected type for parameter value {value!r}')
    if not value:
        raise TypeError('given unnormalized parameters: an empty list')
    kinds = {type(item) for item in value}
    if kinds not in ({str}, {bool}, {int}, {float}, {int, float}):
        raise TypeError(f'Expected a sequence with items of uniform type, not {value!r}')


MODULES = {
    'launch': (LaunchDescription, LaunchContext),
    'launch.actions': (DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable),
    'launch.substitutions': (LaunchConfiguration,),
    'launch_ros': (),
    'launch_ros.actions': (Node,),
    'launch_ros.parameter_descriptions': (ParameterFile, ParameterValue),
    'launch_ros.substitutions': (ExecutableInPackage,),
}


def modules() -> dict[str, types.ModuleType]:
    """The modules by name, for sys.modules."""
    result = {}
    for name, classes in MODULES.items():
        result[name] = types.ModuleType(name)
        for kind in classes:
            setattr(result[name], kind.__name__, kind)
    return result
