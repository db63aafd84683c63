"""Live models that take weights: one module per framework, each the only place where that framework is imported.

Promise: importing this package, or any of its modules, imports no framework. Limit: a target knows names, shapes and
dtypes; what goes where is the plan's business.
"""
