"""OpenStack Nova as the named peer of placing: installed from its package into an environment of its own."""
